"use strict";
const $ = (id) => document.getElementById(id);
const images = [];  // {file, url}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
}

async function ask(path, options = {}) {
  const token = $("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) $("locked").hidden = false;
  const content = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) throw new Error(content.detail || `HTTP ${response.status}`);
  return content;
}

async function listModels() {
  const { models } = await ask("v1/models");
  $("model").replaceChildren(...models.map(({ name, scores }) =>
    make("option", { value: name, textContent: scores ? `${name}: ${scores}` : name })));
}

function add(files) {
  const fresh = [...files].filter((file) => file.type.startsWith("image/"));
  for (const file of fresh) images.push({ file, url: URL.createObjectURL(file) });
  showChosen();
  say(fresh.length ? `${images.length} images chosen.` : "No image among these files.", !fresh.length);
}

function remove(index) {
  URL.revokeObjectURL(images[index].url);
  images.splice(index, 1);
  showChosen();
  const buttons = $("chosen").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] || $("files")).focus();
  say(`${images.length} images chosen.`);
}

function showChosen() {
  $("chosen").replaceChildren(...images.map(({ file, url }, index) =>
    make("li", {},
      make("img", { src: url, alt: file.name }),
      make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${file.name}`,
        onclick: () => remove(index) }))));
}

function section(prompt, scores, shown, tokens, cut) {
  const value = (index) => scores[index] ?? -Infinity;  // null: a judge gave no verdict
  const order = scores.map((_, index) => index).sort((a, b) => value(b) - value(a) || 0);
  const known = scores.filter((score) => score !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const items = order.map((index) => {
    const score = scores[index], { name, url } = shown[index];
    const rank = 1 + known.filter((other) => other > score).length;
    const said = score === null ? [make("b", { textContent: "no score" })] : [
      make("span", { className: "place", textContent: rank, ariaLabel: `rank ${rank}` }),
      make("b", { textContent: score.toFixed(4) }),
      make("meter", { min: 0, max: 1, value: high > low ? (score - low) / (high - low) : 1,
        ariaLabel: "between the worst and the best" })];
    return make("li", { className: score !== null && rank === 1 ? "best" : "" },
      make("img", { src: url, alt: name }),
      make("div", { className: "caption" }, ...said, make("small", { textContent: name, title: name })));
  });
  const note = cut ? [make("small", { textContent: ` (only the beginning was read: ${tokens} tokens)` })] : [];
  return make("section", {}, make("h2", {}, prompt, ...note), make("ol", {}, ...items));
}

async function rank() {
  const prompts = $("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!prompts.length) { say("Type a prompt first.", true); $("prompts").focus(); return; }
  if (!images.length) { say("Choose images first.", true); $("files").focus(); return; }
  if (!$("model").value) await listModels();
  const form = new FormData();
  form.append("model", $("model").value);
  for (const prompt of prompts) form.append("prompts", prompt);
  for (const { file } of images) form.append("images", file);
  // Own URLs: what is shown stays when an image is removed from the next question.
  const shown = images.map(({ file }) => ({ name: file.name, url: URL.createObjectURL(file) }));
  say(`Scoring ${images.length} images for ${prompts.length} prompts…`);
  const answer = await ask("v1/matrix", { method: "POST", body: form });
  for (const image of $("results").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("results").replaceChildren(...prompts.map((prompt, row) =>
    section(prompt, answer.scores[row], shown, answer.tokens[row], answer.truncated[row])));
  say(`${images.length} images ranked by ${answer.model}, best first.`);
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  if ($("go").disabled) return;
  $("go").disabled = true;
  await rank().catch((error) => say(error.message, true));
  $("go").disabled = false;
};
$("prompts").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
};
$("token").onchange = () => listModels().then(() => say(""), (error) => say(error.message, true));
$("files").onchange = () => { add($("files").files); $("files").value = ""; };
document.onpaste = ({ clipboardData }) => { if (clipboardData.files.length) add(clipboardData.files); };
document.ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
document.ondragleave = ({ relatedTarget }) => { if (!relatedTarget) $("drop").classList.remove("over"); };
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add(event.dataTransfer.files);
};
listModels().catch((error) => say(error.message, true));
