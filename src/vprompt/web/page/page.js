"use strict";
const $ = (id) => document.getElementById(id);
const SHOWN = 5;
let token = "";
let latest = 0;
const kept = [];

function make(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function ask(address, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  return answer;
}

async function sentence(answer) {
  try {
    return (await answer.json()).detail || `The server answered ${answer.status}.`;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

async function refreshPool() {
  const answer = await ask("/artifacts");
  if (!answer.ok) throw new Error(await sentence(answer));
  const rows = await answer.json();
  const served = rows.filter((row) => row.classes);
  for (const [id, none] of [["first", false], ["second", true]]) {
    const before = $(id).value;
    $(id).replaceChildren(...(none ? [new Option("nothing", "")] : []));
    for (const row of served) $(id).add(new Option(row.name, row.name));
    if ([...$(id).options].some((option) => option.value === before)) $(id).value = before;
  }
  $("backbone").textContent = served.length ? `on ${served[0].backbone}` : "";
  $("pool").replaceChildren(...rows.map(poolRow));
}

function poolRow(row) {
  const line = make("tr");
  line.append(make("td", row.name));
  if (!row.classes) {
    const cell = make("td", row.problem, "error");
    cell.colSpan = 6;
    line.append(cell);
    return line;
  }
  const classes = row.target === "number" ? `number: ${row.classes[0]}` : row.classes.length;
  const cells = [row.task, classes, row.tokens, row.move, row.measured];
  for (const cell of cells) line.append(make("td", String(cell)));
  const last = make("td");
  const button = make("button", "Show");
  button.setAttribute("aria-label", `Show the card of ${row.name}`);
  button.addEventListener("click", () => showCard(row.name));
  last.append(button);
  if (row.problem) last.append(make("p", row.problem, "error"));
  line.append(last);
  return line;
}

async function showCard(name) {
  const answer = await ask(`/artifacts/${encodeURIComponent(name)}/card`);
  // The header is for machines; people read what follows it.
  const text = answer.ok ? (await answer.text()).replace(/^---\n[^]*?\n---\n/, "").trim() : await sentence(answer);
  $("card").textContent = text || "It has no card.";
  $("card").hidden = false;
  $("card").focus();
}

async function refreshReports() {
  const answer = await ask("/reports");
  if (!answer.ok) return;
  const names = await answer.json();
  $("reports-section").hidden = !names.length;
  $("reports").replaceChildren(...names.map((name) => {
    const item = make("li");
    const link = make("a", name);
    link.href = `/reports/${name.split("/").map(encodeURIComponent).join("/")}`;
    link.target = "_blank";
    link.rel = "noopener";
    // A link carries no token, so a report is fetched with it and opened as text of its own.
    link.addEventListener("click", (event) => { if (token) { event.preventDefault(); openReport(link.href); } });
    item.append(link);
    return item;
  }));
}

async function openReport(address) {
  const answer = await ask(address);
  if (!answer.ok) return notice(await sentence(answer));
  window.open(URL.createObjectURL(new Blob([await answer.text()], { type: "text/html" })), "_blank", "noopener");
}

async function predict(file, artifact) {
  const form = new FormData();
  form.append("images", file, file.name || "image");
  form.append("artifact", artifact);
  const answer = await ask("/predict", { method: "POST", body: form });
  if (!answer.ok) throw new Error(await sentence(answer));
  return (await answer.json()).results[0];
}

function said(found) {
  if (found.value !== undefined) return String(Number(found.value.toPrecision(6)));
  return found.labels ? Object.keys(found.labels).sort().join("|") : found.label;
}

function showAnswer(place, artifact, found) {
  place.replaceChildren(make("h3", artifact));
  if (found.value !== undefined) {
    place.append(make("p", said(found), "number"));
    return;
  }
  if (found.labels && !Object.keys(found.labels).length) place.append(make("p", "none of the classes"));
  const list = make("ol", undefined, found.labels ? "several" : "");
  const ranked = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [label, share] of ranked.slice(0, SHOWN)) {
    const item = make("li");
    if (found.labels && label in found.labels) item.className = "has";
    const bar = make("meter");
    bar.value = share;
    bar.setAttribute("aria-hidden", "true");
    const name = make("span", item.className ? `\u2713 ${label}` : label);
    item.append(name, bar, make("span", `${(100 * share).toFixed(1)} %`, "number"));
    list.append(item);
  }
  place.append(list);
  const more = ranked.length - SHOWN;
  if (more > 0) place.append(make("p", `and ${more} ${more === 1 ? "class" : "classes"} more`));
}

// Two artefacts disagree where one of them knows the other's answer; of other classes it says nothing.
function disagree(one, other) {
  const numbers = [one, other].filter((found) => found.value !== undefined).length;
  if (numbers) return numbers === 2 && said(one) !== said(other);
  if (one.labels || other.labels) {
    return Object.keys(one.probabilities).some((name) => Object.hasOwn(other.probabilities, name)) && said(one) !== said(other);
  }
  const known = Object.hasOwn(other.probabilities, one.label) || Object.hasOwn(one.probabilities, other.label);
  return known && one.label !== other.label;
}

async function label() {
  const round = ++latest;
  const chosen = [$("first").value, $("second").value].filter((name, row, all) => name && all.indexOf(name) === row);
  const wrong = [];
  $("status").textContent = kept.length ? "Labelling ..." : "";
  await Promise.all(kept.map(async ({ file, answers }) => {
    const places = chosen.map(() => make("div", undefined, "answer"));
    answers.replaceChildren(...places);
    const both = await Promise.all(chosen.map(async (artifact, row) => {
      try {
        const found = await predict(file, artifact);
        if (round === latest) showAnswer(places[row], artifact, found);
        return found;
      } catch (error) {
        if (round === latest) places[row].replaceChildren(make("h3", artifact), make("p", error.message, "error"));
        wrong.push(file);
        return null;
      }
    }));
    if (both.length === 2 && both[0] && both[1] && disagree(...both)) places[1].classList.add("differs");
  }));
  if (round !== latest) return;
  const failed = new Set(wrong).size;
  const count = kept.length - failed;
  $("status").textContent = kept.length
    ? `${count} image${count === 1 ? "" : "s"} labelled${failed ? `, ${failed} not` : ""}.` : "";
}

function take(files) {
  for (const each of kept.splice(0)) URL.revokeObjectURL(each.address);
  $("results").replaceChildren();
  for (const file of files) {
    const item = make("li");
    const picture = make("img");
    const address = URL.createObjectURL(file);
    picture.src = address;
    picture.alt = "";  // its name stands below
    picture.addEventListener("error", () => picture.replaceWith(make("p", "cannot be shown here", "unseen")));
    const shown = make("figure");
    shown.append(picture, make("figcaption", file.name));
    const answers = make("div", undefined, "answers");
    item.append(shown, answers);
    $("results").append(item);
    kept.push({ file, answers, address });
  }
  label();
}

async function start() {
  notice("");
  try {
    await refreshPool();
    await refreshReports();
  } catch (error) {
    notice(error.message);
  }
}

$("files").addEventListener("change", () => take([...$("files").files]));
for (const id of ["first", "second"]) $(id).addEventListener("change", label);
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("token-form").hidden = true;
  start().then(label);
});
for (const kind of ["dragenter", "dragover"]) {
  $("drop").addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  $("files").files = event.dataTransfer.files;
  take([...event.dataTransfer.files]);
});
// A file that misses the place must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
start();
