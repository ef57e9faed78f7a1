{{- define "duet.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default "duet-operator" -}}
{{- end -}}

{{- define "duet.operatorImage" -}}
{{ .Values.images.operator | default (printf "%s/duet-operator:%s" .Values.images.registry .Chart.AppVersion) }}
{{- end -}}

{{- define "duet.gatewayImage" -}}
{{ .Values.images.gateway | default (printf "%s/duet-gateway:%s" .Values.images.registry .Chart.AppVersion) }}
{{- end -}}

{{- define "duet.engineImage" -}}
{{- $tag := printf "%s-duet%s" (index .Chart.Annotations "duetserve.io/sglang-version") .Chart.AppVersion -}}
{{ .Values.images.engine | default (printf "%s/duet-engine:%s" .Values.images.registry $tag) }}
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
