// Follows the pointer over each chart, and lets the reader choose light or dark.
"use strict";
const minutes = (s) => (s >= 7200 ? (s / 3600).toFixed(2) + " h" : (s / 60).toFixed(1) + " min");

function valueAt(series, x) {
  let index = -1;
  for (let i = 0; i < series.x.length && series.x[i] <= x; i++) index = i;
  if (!series.step && index + 1 < series.x.length && (index < 0 || x - series.x[index] > series.x[index + 1] - x)) index++;
  return index < 0 ? null : series.y[index];
}

for (const chart of document.querySelectorAll("svg.chart")) {
  const series = JSON.parse(chart.dataset.series);
  if (!series.length) continue;
  const [low, high, left, right] = chart.dataset.axis.split(" ").map(Number);
  const pointer = chart.querySelector(".pointer");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  chart.parentElement.append(tip);
  const hide = () => { tip.hidden = true; pointer.setAttribute("visibility", "hidden"); };
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    if (place < left || place > right) return hide();
    const x = low + (place - left) / (right - left) * (high - low);
    pointer.setAttribute("x1", place);
    pointer.setAttribute("x2", place);
    pointer.setAttribute("visibility", "visible");
    tip.replaceChildren(minutes(x));
    for (const each of series) {
      const value = valueAt(each, x);
      if (value === null) continue;
      const row = document.createElement("div");
      const colour = document.createElement("i");
      colour.className = "c" + each.colour;
      const number = document.createElement("b");
      number.textContent = value;
      row.append(colour, each.name + " ", number);
      tip.append(row);
    }
    tip.hidden = false;
    const parent = chart.parentElement.getBoundingClientRect();
    const wanted = event.clientX - parent.left + 16;
    tip.style.left = Math.min(wanted, parent.width - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY - parent.top + 16 + "px";
  });
}

document.querySelector("button").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
