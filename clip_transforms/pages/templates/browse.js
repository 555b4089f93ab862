"use strict";
// Every text of the dataset becomes a text node or an attribute here, never HTML.
const PAGE = 60;
const element = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const plural = (count, one, many = one + "s") => number(count) + " " + (count === 1 ? one : many);

const make = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};

const state = {
  about: null, // what /api/state says
  like: null, // the sample that is searched for: {id, key}
  picture: null, // the picture that is searched for: {vector, name, url}
  rows: [], // of the pages that are shown
  total: 0,
  shown: 0,
  asking: null, // the AbortController of the question on its way
  last: null, // the question that the rows answer
  chosen: new Map(), // id → key
  open: -1, // place in `rows` of the sample in the dialog
};

// Requests. The header is one that no other site can send.
const ask = async (path, body, signal, type = "application/json") => {
  const options = body === undefined ? { signal } : { method: "POST", body, signal, headers: { "x-clip-transforms": "browse", "content-type": type } };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The command that serves this page does not answer; has it been ended?");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({ error: "it answered " + response.status }));
    const failure = new Error(said.error || "it answered " + response.status);
    failure.field = said.field;
    throw failure;
  }
  return response;
};

const say = (text) => { element("status").textContent = text; };
const complain = (error) => {
  const problem = element("problem");
  problem.hidden = !error;
  problem.textContent = error ? error.message[0].toUpperCase() + error.message.slice(1) : "";
  element("where").setAttribute("aria-invalid", String(Boolean(error) && error.field === "where"));
  if (error && error.field === "where") element("filters").open = true;
};

// The question.
const numberOf = (id) => {
  const text = element(id).value.trim().replace(",", ".");
  if (!text) return null;
  const value = Number(text);
  return Number.isFinite(value) ? value : text;
};
const question = () => {
  const labels = {};
  for (const select of element("labels").querySelectorAll("select")) if (select.value) labels[select.name] = select.value;
  const asked = { labels, least: numberOf("least"), most: numberOf("most"), size: Number(element("size").value), where: element("where").value };
  if (state.like) asked.like = state.like.id;
  else if (state.picture) Object.assign(asked, { vector: state.picture.vector, picture: state.picture.name });
  else asked.text = element("text").value;
  return asked;
};
const showQuestion = () => {
  const near = state.like || state.picture;
  element("near").hidden = !near;
  if (state.like) {
    element("near-name").textContent = state.like.key;
    element("near-picture").src = pictureOf(state.like.id, "square");
  } else if (state.picture) {
    element("near-name").textContent = state.picture.name;
    if (state.picture.url) element("near-picture").src = state.picture.url;
  }
  element("near-picture").hidden = !(state.like || (state.picture && state.picture.url)); // a reload forgets a dropped picture
  const fields = [...element("labels").querySelectorAll("select"), ...["least", "most", "where"].map(element)];
  const used = fields.filter((field) => field.value.trim()).length + (element("size").value === "0" ? 0 : 1);
  element("filtering").textContent = used ? "(" + number(used) + ")" : "";
};

// History: the back button returns to the search before.
const remembered = () => ({
  text: element("text").value, like: state.like, picture: state.picture && { vector: state.picture.vector, name: state.picture.name },
  labels: question().labels, least: element("least").value, most: element("most").value, size: element("size").value, where: element("where").value,
});
const recall = (of) => {
  element("text").value = of.text || "";
  state.like = of.like || null;
  state.picture = of.picture || null;
  for (const id of ["least", "most", "where"]) element(id).value = of[id] || "";
  element("size").value = of.size || "0";
  for (const select of element("labels").querySelectorAll("select")) select.value = (of.labels || {})[select.name] || "";
};

const search = async (remember = true) => {
  if (!state.about || !state.about.ready) return;
  if (state.asking) state.asking.abort();
  const asking = (state.asking = new AbortController());
  const now = remembered();
  if (remember && JSON.stringify(now) !== JSON.stringify(history.state)) history.pushState(now, "");
  const asked = (state.last = question());
  showQuestion();
  complain(null);
  say(asked.text || asked.vector || asked.like !== undefined ? "Searching…" : "Looking…");
  element("found").setAttribute("aria-busy", "true");
  for (const image of element("found").querySelectorAll("img")) if (!image.complete) image.removeAttribute("src"); // frees its connection
  try {
    const answer = await (await ask("/api/search", JSON.stringify({ ...asked, first: 0, rows: PAGE }), asking.signal)).json();
    state.rows = [];
    element("found").replaceChildren();
    show(answer);
    window.scrollTo({ top: 0 });
  } catch (error) {
    if (error.name === "AbortError") return;
    state.last = null;
    element("more").hidden = true;
    element("same").hidden = true;
    say("");
    complain(error);
  } finally {
    if (state.asking === asking) {
      element("found").setAttribute("aria-busy", "false");
      state.asking = null;
    }
  }
};
const showMore = async () => {
  if (state.asking || !state.last || state.rows.length >= state.shown) return;
  const asking = (state.asking = new AbortController());
  element("show-more").disabled = true;
  try {
    const body = JSON.stringify({ ...state.last, first: state.rows.length, rows: PAGE });
    const answer = await (await ask("/api/search", body, asking.signal)).json();
    if (!asking.signal.aborted) show(answer);
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  } finally {
    element("show-more").disabled = false;
    if (state.asking === asking) state.asking = null;
  }
};
const show = (answer) => {
  const first = state.rows.length;
  state.rows.push(...answer.rows);
  Object.assign(state, { total: answer.total, shown: answer.shown });
  element("found").append(...answer.rows.map((row, place) => card(row, first + place)));
  const nearest = answer.rows.some((row) => "similarity" in row) || (state.last && (state.last.text || "").trim());
  const few = answer.shown < answer.total ? "; the nearest " + number(answer.shown) + " can be scrolled through" : "";
  if (answer.total) say(plural(answer.total, "row") + (nearest ? ", nearest first" + few : "") + (state.about.selection.length ? ", of the selection" : "") + "." + answer.notes.map((note) => " " + note).join(""));
  else {
    say("Nothing was found.");
    element("found").append(make("li", { className: "nothing" }, state.about.rows ? "No row fits these filters. Clear them, or make them wider." : "There is nothing in this dataset that could be shown."));
  }
  element("command").textContent = answer.command;
  element("same").hidden = false;
  element("more").hidden = state.rows.length >= state.shown;
};

// Pictures.
const pictureOf = (id, kind) => "/picture/" + state.about.version + "/" + kind + "/" + id;
const WHY = {
  vanished: "its source is gone",
  changed: "its source has changed since it was embedded",
  unreadable: "its source cannot be read",
  "not allowed": "its source lies where --allow_uri does not permit to read",
  "not fetched": "it could not be fetched",
  "no picture": "it has no picture",
};
const lostBox = (row, why) => make("div", { className: "lost" }, make("b", {}, make("bdi", {}, row.key)), make("span", {}, WHY[why] || why));
const nameOf = (row) => row.caption || "picture " + row.key;
const image = (row, kind, size) => {
  if (!row.picture) return lostBox(row, "no picture");
  const made = make("img", { alt: nameOf(row), width: size, height: size, loading: kind === "square" ? "lazy" : "eager", decoding: "async" });
  made.addEventListener("error", async () => {
    if (!made.getAttribute("src")) return;
    const said = await fetch(made.src).then((response) => (response.ok ? {} : response.json())).catch(() => ({ lost: "it cannot be shown; the command does not answer" }));
    if (said.lost) made.replaceWith(lostBox(row, said.lost));
  });
  made.src = pictureOf(row.id, kind);
  return made;
};
const card = (row, place) => {
  const open = make("button", { type: "button", className: "open" }, image(row, "square", 256));
  open.addEventListener("click", () => openSample(place));
  open.dataset.place = place;
  const tick = make("input", { type: "checkbox", checked: state.chosen.has(row.id), "aria-label": "Select " + row.key });
  tick.dataset.id = row.id;
  tick.addEventListener("change", () => choose(row, tick.checked));
  const like = make("button", { type: "button", className: "like", "aria-label": "More like " + row.key }, "More like this");
  like.addEventListener("click", () => moreLike(row));
  const value = "similarity" in row ? "similarity " + row.similarity.toFixed(3) : row.score === null ? "" : "clip_score " + row.score.toFixed(3);
  const facts = [value, ...row.labels.map(([, label]) => label)].filter(Boolean).join(" · ");
  const frame = make("div", { className: "frame" }, open, make("label", { className: "tick" }, tick), like);
  const words = make("p", { className: "words", dir: "auto" }, row.caption || row.key);
  return make("li", {}, frame, words, make("p", { className: "facts-line", title: factsOf(row) }, make("bdi", {}, facts || "\u00a0")));
};
const factsOf = (row) => [
  "similarity" in row ? "similarity " + row.similarity : "", row.score === null ? "" : "clip_score " + row.score, ...row.labels.map(([taxonomy, label]) => taxonomy + ": " + label),
].filter(Boolean).join(", ");

const moreLike = (row) => {
  element("sample").close();
  state.like = { id: row.id, key: row.key };
  state.picture = null;
  element("text").value = "";
  search();
  element("results").focus({ preventScroll: true });
};
const searchPicture = async (file) => {
  if (!file) return;
  if (state.asking) state.asking.abort();
  const asking = (state.asking = new AbortController());
  complain(null);
  say("Looking at the picture…");
  try {
    const answer = await (await ask("/api/picture", file, asking.signal, "application/octet-stream")).json();
    if (state.picture && state.picture.url) URL.revokeObjectURL(state.picture.url);
    state.picture = { vector: answer.vector, name: file.name || "the pasted picture", url: URL.createObjectURL(file) };
    state.like = null;
    element("text").value = "";
    state.asking = null;
    await search();
  } catch (error) {
    if (error.name === "AbortError") return;
    state.asking = null;
    say("");
    complain(error);
  } finally {
    element("file").value = "";
  }
};

// The selection.
const choose = (row, on) => {
  if (on) state.chosen.set(row.id, row.key);
  else state.chosen.delete(row.id);
  for (const tick of element("found").querySelectorAll("input")) if (Number(tick.dataset.id) === row.id) tick.checked = on;
  element("chosen").hidden = element("not-chosen").hidden = !state.chosen.size;
  element("count").textContent = number(state.chosen.size);
  keepChosen();
  showChosen();
};
// A selection outlives a reload of the page; of another dataset, or of this one after a change, it means nothing.
const chosenName = () => "chosen " + state.about.version;
const keepChosen = () => {
  try {
    sessionStorage.setItem(chosenName(), JSON.stringify([...state.chosen]));
  } catch { /* it is full or forbidden: then a reload forgets, as before */ }
};
const recallChosen = () => {
  let kept = [];
  try {
    kept = JSON.parse(sessionStorage.getItem(chosenName()) || "[]");
  } catch { /* as above */ }
  for (const [id, key] of kept) choose({ id, key }, true);
};
const showChosen = () => {
  const row = state.rows[state.open];
  const on = Boolean(row) && state.chosen.has(row.id);
  element("choose-sample").setAttribute("aria-pressed", String(on));
  element("choose-sample").textContent = on ? "Selected ✓" : "Select";
};
const copy = async (text, button) => {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text, className: "unseen" }); // without HTTPS there is no clipboard but this
    (element("sample").open ? element("sample") : document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
};
const download = async () => {
  try {
    const file = await (await ask("/api/selection", JSON.stringify({ rows: [...state.chosen.keys()] }))).blob();
    const url = URL.createObjectURL(file);
    make("a", { href: url, download: "selection.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say("selection.csv has " + plural(state.chosen.size, "row") + "; commands take it as --selection selection.csv.");
  } catch (error) {
    complain(error);
  }
};

// The dialog with everything that is known of a sample.
const openSample = async (place) => {
  const row = state.rows[place];
  if (!row) return;
  state.open = place;
  element("sample-key").textContent = row.key;
  element("sample-caption").textContent = row.caption;
  element("previous").disabled = place === 0;
  element("next").disabled = place + 1 >= state.shown;
  const picture = image(row, "whole", 1024);
  if (row.picture) fit(picture, ...row.size);
  element("stage").replaceChildren(picture);
  element("open-picture").hidden = !row.picture;
  if (row.picture) element("open-picture").href = pictureOf(row.id, "whole");
  element("known").replaceChildren(make("p", { className: "hint" }, "Reading…"));
  showChosen();
  if (!element("sample").open) element("sample").showModal();
  element("sample").scrollTop = 0;
  try {
    const known = await (await ask("/api/sample/" + row.id)).json();
    if (state.open === place) showKnown(known);
  } catch (error) {
    if (state.open === place) element("known").replaceChildren(make("p", { className: "problem" }, error.message));
  }
};
const text = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value, null, 1) : typeof value === "number" && Number.isInteger(value) ? number(value) : String(value));
const valuesOf = (pairs) => make("dl", { className: "values" }, ...pairs.filter(([, value]) => value !== null && value !== "").map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, text(value)))));
const fit = (picture, width, height) => {
  picture.width = width;
  picture.height = height;
  picture.classList.toggle("small", Math.max(width, height) < 384);
};
const showKnown = (known) => {
  const { caption, width, height, ...columns } = known.columns;
  element("sample-caption").textContent = caption || "";
  element("like").disabled = !known.searchable;
  const parts = [];
  for (const of of known.labels) {
    if (of.label === null) continue;
    const best = of.top && of.top.length ? of.top : [of];
    const rows = best.map((one, place) => make("tr", { className: place ? "" : "best" }, make("th", { scope: "row" }, make("bdi", {}, one.label)), make("td", {}, (100 * one.probability).toFixed(1) + "\u00a0%"), make("td", {}, one.similarity.toFixed(3))));
    const heads = ["label", "probability", "cosine"].map((name) => make("th", { scope: "col" }, name));
    parts.push(make("h3", {}, "Labels: " + of.taxonomy), make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
  }
  if (known.captions.length > 1) parts.push(make("h3", {}, "All captions"), make("ul", {}, ...known.captions.map((one) => make("li", { dir: "auto" }, one.caption + (one.clip_score === null ? "" : " (" + one.clip_score.toFixed(3) + ")")))));
  for (const reject of known.rejects) parts.push(make("p", { className: "problem" }, "The " + reject.modality + " was rejected: " + reject.reason + (reject.message ? " (" + reject.message + ")" : "")));
  const size = width ? [["size", number(width) + " × " + number(height) + " pixels"]] : [];
  const { key, shard, row, ...others } = columns;
  parts.push(make("h3", {}, "Where it is from"), valuesOf([["file", known.file], [known.file ? "shard, a piece of the folder" : "shard", shard], ["key", key], ["row", row], ["part", known.part], ["name for --like", known.name]]));
  parts.push(make("h3", {}, "Columns"), valuesOf([...size, ...Object.entries(others)]));
  element("known").replaceChildren(...parts);
};
const step = async (by) => {
  const place = state.open + by;
  if (place >= state.rows.length && by > 0) await showMore();
  if (place >= 0 && place < state.rows.length) openSample(place);
};

// The page itself.
const fillFilters = (about) => {
  const fields = Object.entries(about.labels).map(([taxonomy, labels], place) => {
    const select = make("select", { id: "label-" + place, name: taxonomy }, make("option", { value: "" }, "any"), ...labels.map(([label, count]) => make("option", { value: label }, label + " (" + number(count) + ")")));
    return make("div", { className: "field" }, make("label", { htmlFor: select.id }, "Label: " + taxonomy), select);
  });
  element("labels").replaceChildren(...fields);
  element("scores").hidden = !about.scores;
  if (about.scores) element("range").textContent = about.scores[0].toFixed(3) + " to " + about.scores[1].toFixed(3);
};
const begin = async () => {
  try {
    for (;;) {
      const about = (state.about = await (await ask("/api/state")).json());
      element("name").textContent = about.name;
      document.title = about.name + " – browse";
      if (about.failure) throw new Error("The dataset cannot be shown: " + about.failure);
      element("progress").hidden = about.ready;
      element("progress").value = about.progress;
      if (about.ready) break;
      say("Reading the dataset: " + Math.floor(100 * about.progress) + "\u00a0%");
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  } catch (error) {
    element("progress").hidden = true;
    element("found").setAttribute("aria-busy", "false");
    say("");
    complain(error);
    return;
  }
  fillFilters(state.about);
  recallChosen();
  if (history.state) recall(history.state);
  else history.replaceState(remembered(), "");
  await search(false);
  followWords();
};
const followWords = async () => {
  try {
    while (state.about.words === "loading") {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      state.about.words = (await (await ask("/api/state")).json()).words;
    }
  } catch (error) {
    complain(error);
    return;
  }
  if (state.about.words !== "ready") element("how").textContent = "Words and pictures cannot be searched for: " + state.about.words;
};

element("skip").addEventListener("click", (event) => {
  event.preventDefault(); // another address in the history would be another search
  element("results").focus();
});
element("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (element("text").value.trim()) state.like = state.picture = null;
  search();
});
element("text").addEventListener("search", () => { if (!element("text").value && state.last && state.last.text) search(); });
element("filters").addEventListener("change", (event) => { if (event.target.id !== "where") search(); });
element("clear").addEventListener("click", () => {
  for (const id of ["least", "most", "where"]) element(id).value = "";
  element("size").value = "0";
  for (const select of element("labels").querySelectorAll("select")) select.value = "";
  search();
});
element("forget").addEventListener("click", () => {
  state.like = state.picture = null;
  search();
  element("text").focus();
});
element("file").addEventListener("change", () => searchPicture(element("file").files[0]));
element("show-more").addEventListener("click", showMore);
new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) showMore(); }, { rootMargin: "800px" }).observe(element("more"));
element("copy-command").addEventListener("click", () => copy(element("command").textContent, element("copy-command")));
element("copy-keys").addEventListener("click", () => copy([...state.chosen.values()].join("\n"), element("copy-keys")));
element("copy-key").addEventListener("click", () => copy(state.rows[state.open].key, element("copy-key")));
element("download").addEventListener("click", download);
element("unchoose").addEventListener("click", () => {
  for (const [id, key] of [...state.chosen]) choose({ id, key }, false);
  element("text").focus();
});
element("like").addEventListener("click", () => moreLike(state.rows[state.open]));
element("choose-sample").addEventListener("click", () => {
  const row = state.rows[state.open];
  choose(row, !state.chosen.has(row.id));
});
element("previous").addEventListener("click", () => step(-1));
element("next").addEventListener("click", () => step(1));
element("close").addEventListener("click", () => element("sample").close());
element("sample").addEventListener("click", (event) => { if (event.target === element("sample")) element("sample").close(); });
element("sample").addEventListener("close", () => {
  const place = state.open;
  state.open = -1;
  const button = element("found").querySelector('.open[data-place="' + place + '"]');
  if (button) button.focus();
});
window.addEventListener("popstate", (event) => {
  if (element("sample").open) element("sample").close();
  recall(event.state || {});
  search(false);
});
window.addEventListener("paste", (event) => {
  const file = event.clipboardData && event.clipboardData.files[0];
  if (!file) return;
  event.preventDefault();
  searchPicture(file);
});
let inside = 0;
window.addEventListener("dragenter", (event) => {
  if (!event.dataTransfer || !event.dataTransfer.types.includes("Files")) return;
  inside += 1;
  element("drop").hidden = false;
});
window.addEventListener("dragleave", () => {
  inside = Math.max(0, inside - 1);
  element("drop").hidden = !inside;
});
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  element("drop").hidden = true;
  if (event.dataTransfer.files[0]) searchPicture(event.dataTransfer.files[0]);
  else complain(new Error("That is a link and not a file; save the picture first, then drop its file."));
});
window.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (element("sample").open) {
    if (event.key === "ArrowLeft" && state.open > 0) step(-1);
    if (event.key === "ArrowRight") step(1);
  } else if (event.key === "/" && !typing) {
    event.preventDefault();
    element("text").select();
  } else if (event.target.matches(".open") && event.key.startsWith("Arrow")) {
    const buttons = [...element("found").querySelectorAll(".open")];
    const columns = getComputedStyle(element("found")).gridTemplateColumns.split(" ").length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = buttons[buttons.indexOf(event.target) + by];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }
});
begin();
