{{- define "duet.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default "duet-operator" -}}
{{- end -}}

{{- define "duet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "duet.selector" -}}
app.kubernetes.io/name: duet-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Not managed-by duet-operator: that label marks what the operator makes and watches. */}}
{{- define "duet.labels" -}}
{{ include "duet.selector" . }}
app.kubernetes.io/part-of: duet
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
