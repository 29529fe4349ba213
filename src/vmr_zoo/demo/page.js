"use strict";
// Text from files, models and people becomes textContent, never markup.
const at = id => document.getElementById(id);
const COLOURS = 4;
let state = null;      // what /state says
let running = null;    // AbortController of the search
let answer = null;     // of the last search
let shown = "";        // id of the video in the player
let origin = 0;        // second of the video at which the player's clock is 0
let until = null;      // second of the video at which the playing moment ends
let ours = 0;          // seeks that this script has begun

function make(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}
function clock(seconds) {
  const tenths = Math.round(seconds * 10), hours = Math.floor(tenths / 36000), minutes = Math.floor(tenths / 600) % 60;
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}
function say(text) { at("status").textContent = text; }
function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}
async function checked(response) {
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new Error(found.error || `The server answered ${response.status}.`);
}
function explain(error) {
  return error instanceof TypeError ? "vmr demo does not answer: it was ended, or the connection broke." : error.message;
}

// Choosing a video

function option(video) {
  const node = make("option", "", video.name);
  node.value = video.id;
  at("video").append(node);
}
function choose() {
  if (running) running.abort();
  answer = null;
  at("found").hidden = true;
  fail("");
  say("");
  const id = at("video").value;
  at("player").hidden = !id;
  if (id) load(id);
}
function load(id) {
  shown = id;
  origin = 0;
  until = null;
  at("unplayable").hidden = true;
  at("player").src = "/video/" + id;
}
async function upload(file) {
  fail("");
  if (file.size > state.most_bytes) {
    fail(`${file.name} has ${Math.ceil(file.size / 1e6)} MB; dropped files may have ${Math.floor(state.most_bytes / 1e6)} MB together. `
      + "Start vmr demo with a larger upload_mb, or with videos=FOLDER.");
    return;
  }
  say(`Copying ${file.name} …`);
  try {
    const response = await fetch("/upload?name=" + encodeURIComponent(file.name), { method: "POST", body: file });
    const video = await (await checked(response)).json();
    option(video);
    at("video").value = video.id;
    choose();
    at("query").focus();
  } catch (error) {
    say("");
    fail(explain(error));
  }
}

// Searching

async function search() {
  fail("");
  at("found").hidden = true;
  const control = running = new AbortController();
  at("search").textContent = "Stop";
  say("Searching …");
  try {
    const asked = { video: at("video").value, query: at("query").value };
    if (!asked.video) throw new Error("Choose a video, or drop a file.");
    const response = await fetch("/search", { method: "POST", body: JSON.stringify(asked), signal: control.signal });
    await read(await checked(response));
  } catch (error) {
    if (running === control) say(error.name === "AbortError" ? "Stopped." : "");
    if (error.name !== "AbortError") fail(explain(error));
  }
  if (running !== control) return;
  running = null;
  at("search").textContent = "Search";
  at("progress").hidden = true;
}
async function read(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "", ended = false;
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      if (event.answer) { ended = true; show(event.answer); }
      else progress(event);
    }
  }
  if (!ended) throw new Error("vmr demo ended before it had an answer.");
}
function progress(event) {
  const bar = at("progress");
  bar.hidden = false;
  if (event.waiting) {
    bar.removeAttribute("value");
    say("Waiting for another search …");
    return;
  }
  const name = state.runs.length > 1 ? ` for ${event.run}` : "";
  if (event.of) {
    bar.value = Math.min(0.99, event.seconds / event.of);
    say(`Encoding the video${name}: ${clock(event.seconds)} of about ${clock(event.of)}`);
  } else {
    bar.removeAttribute("value");
    say(`Encoding the video${name}: ${clock(event.seconds)}`);
  }
}

// Showing an answer

function show(found) {
  answer = { ...found, video: at("video").value, title: at("video").selectedOptions[0].textContent };
  if (shown !== answer.video || at("unplayable").hidden) origin = -found.offset;
  const count = found.results.reduce((sum, result) => sum + (result.moments || []).length, 0);
  say(`${count} ${count === 1 ? "moment" : "moments"} in ${clock(found.duration)} of video.`);
  const stage = at("stage");
  stage.replaceChildren(strip());
  at("lists").replaceChildren();
  found.results.forEach((result, number) => {
    const colour = `var(--run-${number % COLOURS})`;
    if (result.moments) stage.append(...timeline(result, colour));
    at("lists").append(list(result, colour));
  });
  stage.append(axis(found.duration), make("div", "cursor"));
  at("notes").replaceChildren(...found.notes.map(text => make("li", "", text)));
  at("found").hidden = false;
  cursor();
}
function picture(seconds) {
  const image = make("img");
  image.alt = "";
  image.src = `/picture/${answer.video}?at=${Math.max(0, Math.min(seconds, answer.duration - 0.1)).toFixed(1)}`;
  return image;
}
function strip() {
  const node = make("div", "strip"), count = window.innerWidth < 640 ? 5 : 8;
  for (let number = 0; number < count; number++) node.append(picture((number + 0.5) * answer.duration / count));
  return node;
}
function timeline(result, colour) {
  const nodes = [make("div", "name", result.run)];
  result.moments.forEach((moment, rank) => {
    const lane = make("div", "lane"), bar = make("button", "", rank + 1);
    bar.type = "button";
    bar.tabIndex = -1;  // the list below is the way of the keyboard
    bar.title = label(moment, rank);
    bar.dataset.start = moment[0];
    bar.style.setProperty("--colour", colour);
    bar.style.left = 100 * moment[0] / answer.duration + "%";
    bar.style.width = 100 * (moment[1] - moment[0]) / answer.duration + "%";
    bar.style.opacity = 1 / (1 + 0.25 * rank);
    bar.addEventListener("click", event => { event.stopPropagation(); play(moment); });
    lane.append(bar);
    nodes.push(lane);
  });
  if (result.clip_scores) nodes.push(curve(result.clip_scores, colour));
  return nodes;
}
function curve(scores, colour) {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  const low = Math.min(...scores), high = Math.max(...scores), title = document.createElementNS(space, "title");
  svg.setAttribute("class", "curve");
  svg.style.setProperty("--colour", colour);
  svg.setAttribute("viewBox", `0 -0.06 ${scores.length} 1.12`);
  svg.setAttribute("preserveAspectRatio", "none");
  title.textContent = `clip scores, ${low.toPrecision(3)} to ${high.toPrecision(3)}`;
  path.setAttribute("d", scores.map((score, i) => `${i ? "L" : "M"}${i} ${1 - (score - low) / (high - low || 1)}H${i + 1}`).join(""));
  path.setAttribute("fill", "none");
  path.setAttribute("stroke", "currentColor");
  path.setAttribute("stroke-width", "1.5");
  path.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(title, path);
  return svg;
}
function axis(duration) {
  const node = make("div", "axis"), most = window.innerWidth < 640 ? 4 : 9;
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200].find(s => duration / s <= most) || duration;
  for (let time = 0; time <= duration - step / 3; time += step) {
    const tick = make("span", "", clock(time).replace(".0", ""));
    tick.style.left = 100 * time / duration + "%";
    node.append(tick);
  }
  return node;
}
function label([start, end, score], rank) {
  return `Moment ${rank + 1}: ${clock(start)} to ${clock(end)}, score ${score.toPrecision(4)}`;
}
function list(result, colour) {
  const node = make("section"), title = make("h2", "", result.run);
  title.style.setProperty("--colour", colour);
  node.append(title);
  if (result.error) node.append(make("p", "failed", result.error));
  else if (!result.moments.length) node.append(make("p", "note", "No moment was found."));
  const items = make("ol");
  (result.moments || []).forEach((moment, rank) => {
    const item = make("li"), button = make("button", "moment"), text = make("span"), save = make("button", "save", "Clip");
    button.type = save.type = "button";
    button.setAttribute("aria-label", "Play. " + label(moment, rank));
    button.dataset.start = moment[0];
    text.append(make("b", "", `${rank + 1}.  ${clock(moment[0])} to ${clock(moment[1])}`),
      make("small", "", "score " + moment[2].toPrecision(4)));
    button.append(picture((moment[0] + moment[1]) / 2), text);
    button.addEventListener("click", () => play(moment));
    save.setAttribute("aria-label", "Download the clip. " + label(moment, rank));
    save.title = "Download the clip";
    save.addEventListener("click", () => download(moment, save));
    item.append(button, save);
    items.append(item);
  });
  node.append(items);
  return node;
}
function clip([start, end]) { return `/clip/${answer.video}?start=${start}&end=${end}`; }
async function download(moment, button) {
  const name = answer.title.replace(/^.*[/\\]/, "").replace(/\.\w+$/, ""), before = at("status").textContent;
  fail("");
  button.disabled = true;
  say("Cutting the clip …");
  try {
    const blob = await (await checked(await fetch(clip(moment)))).blob(), link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name} ${clock(moment[0])} to ${clock(moment[1])}.mp4`.replaceAll(":", ".");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    fail(explain(error));
  }
  button.disabled = false;
  say(before);
}

// Playing

function seek(seconds) {
  ours += 1;
  at("player").currentTime = Math.max(0, seconds - origin);
}
function play(moment) {
  const player = at("player");
  until = moment[1];
  for (const node of document.querySelectorAll("[data-start]")) node.classList.toggle("playing", +node.dataset.start === moment[0]);
  if (at("unplayable").hidden) seek(moment[0]);
  else {
    player.src = clip(moment);
    origin = moment[0];
  }
  player.play().catch(() => {});
  player.scrollIntoView({ block: "nearest" });
}
function cursor() {
  const line = document.querySelector(".cursor");
  if (!line || !answer) return;
  const time = at("player").currentTime + origin;
  line.style.left = Math.max(0, Math.min(100, 100 * time / answer.duration)) + "%";
}

at("player").addEventListener("timeupdate", () => {
  const player = at("player");
  cursor();
  if (until !== null && player.currentTime + origin >= until) {
    until = null;
    player.pause();
  }
});
at("player").addEventListener("seeking", () => {
  if (ours) ours -= 1;
  else until = null;  // somebody moved the player: it does not stop at the end of the moment
  cursor();
});
at("player").addEventListener("error", () => {
  if (shown && at("player").getAttribute("src") === "/video/" + shown) at("unplayable").hidden = false;
});
at("stage").addEventListener("click", event => {
  const box = at("stage").getBoundingClientRect();
  until = null;
  if (at("unplayable").hidden) seek(answer.duration * (event.clientX - box.left) / box.width);
});
at("video").addEventListener("change", choose);
at("form").addEventListener("submit", event => {
  event.preventDefault();
  if (running) running.abort();
  else search();
});
at("file").addEventListener("change", event => {
  if (event.target.files.length) upload(event.target.files[0]);
  event.target.value = "";
});
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault();  // a file that misses the target would replace the page
  at("drop").classList.toggle("over", name === "dragover");
  if (name === "drop" && event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
});

fetch("/state").then(checked).then(response => response.json()).then(found => {
  state = found;
  at("about").textContent = found.about;
  at("query").maxLength = found.longest_query;
  at("video").replaceChildren();
  if (!found.videos.length) {
    const none = make("option", "", "no video yet: drop a file");
    none.value = "";
    at("video").append(none);
  }
  found.videos.forEach(option);
  choose();
}).catch(error => fail(explain(error)));
