"use strict";

const PAGE_OF_ROWS = 100;

/** Makes an element; text of data becomes text, never markup. */
function make(tag, options = {}, ...children) {
  const { attributes = {}, ...properties } = options;
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function switchTheme() {
  const button = document.querySelector(".theme"), root = document.documentElement;
  const themes = ["", "dark", "light"];
  const show = () => { button.textContent = "Theme: " + (root.dataset.theme || "system"); };
  button.addEventListener("click", () => {
    root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    try { localStorage.setItem("vmr_zoo theme", root.dataset.theme); } catch { /* storage is off */ }
    show();
  });
  show();
}

/** One table with a switch between metrics; rows are drawn from data, a page at a time. */
class Leaderboard {
  constructor(section) {
    this.find = selector => section.querySelector(selector);
    this.data = JSON.parse(this.find(".rows").textContent);
    this.shown = PAGE_OF_ROWS;
    this.uneven = new Set(this.data.rows.map(row => row.costs[0][0])).size > 1;  // costs begin with the number of seeds
    this.sort = this.data.sort;  // {column, reversed}; column -1: the names; null: as the data is ordered
    for (const input of section.querySelectorAll(".switch input"))
      input.addEventListener("change", () => this.show(+input.value));
    this.find(".filter").addEventListener("input", () => { this.shown = PAGE_OF_ROWS; this.draw(); });
    this.find(".grouped")?.addEventListener("change", () => this.draw());
    for (const button of section.querySelectorAll(".more button"))
      button.addEventListener("click", () => { this.shown += +button.value; this.draw(); });
    this.show(this.data.view);
  }

  show(view) {
    this.costs = view === this.data.metrics.length;
    this.view = view;
    const titles = this.costs ? this.data.costs : this.data.columns;
    if (this.sort && this.sort.column >= titles.length) this.sort = { column: 0, reversed: false };
    const head = ["run", ...titles].map((title, place) => {
      const button = make("button", { type: "button" }, ...title.split(/(?<=_)/).flatMap(word => [word, make("wbr")]));
      button.addEventListener("click", () => this.sortBy(place - 1));
      return make("th", { scope: "col" }, button);
    });
    if (this.uneven && !this.costs) head.splice(1, 0, make("th", { scope: "col", title: "seeds" }, "n"));
    this.find(".leaderboard thead").replaceChildren(make("tr", {}, ...head));
    this.draw();
  }

  sortBy(column) {
    const again = this.sort?.column === column;
    this.sort = { column, reversed: again && !this.sort.reversed };
    this.draw();
  }

  /** Whether small numbers are good: costs, calibration errors, and the loss out of distribution. */
  smallFirst(column) {
    return this.costs || this.data.low[this.view] || this.data.columns[column] === this.data.drop;
  }

  number(row, column) {
    return this.costs ? row.costs[column]?.[0] ?? null : row.means[this.view][column];
  }

  /** Returns the rows that pass the filter, best first, with their ranks. */
  ordered() {
    const words = this.find(".filter").value.toLowerCase().split(/\s+/);
    const family = row => this.data.families[row.family]?.name ?? "";
    const kept = this.data.rows.filter(row => {
      const text = (row.label + " " + row.name + " " + family(row)).toLowerCase();
      return words.every(word => text.includes(word));
    });
    if (!this.sort) return kept;
    const { column, reversed } = this.sort;
    if (column < 0) return kept.sort((a, b) => (reversed ? -1 : 1) * a.label.localeCompare(b.label));
    const sign = this.smallFirst(column) === reversed ? -1 : 1;
    return kept.sort((a, b) => {
      const x = this.number(a, column), y = this.number(b, column);
      return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
    });
  }

  /** Divides rows by family, families in the order of their first rows, baselines and rows from elsewhere last. */
  groups(rows) {
    if (!this.find(".grouped")?.checked) return [["", rows]];
    const found = Map.groupBy
      ? Map.groupBy(rows, row => row.family)
      : rows.reduce((map, row) => map.set(row.family, [...(map.get(row.family) ?? []), row]), new Map());
    const last = number => this.data.families[number].last;
    return [...found].sort(([a], [b]) => last(a) - last(b))
      .map(([number, own]) => [this.data.families[number].name || "Other", own]);
  }

  draw() {
    const table = this.find(".leaderboard"), rows = this.ordered();
    const ranked = this.sort && this.sort.column >= 0 && !this.sort.reversed;
    const rank = new Map(ranked ? rows.map((row, place) => [row, place + 1]) : []);
    const width = table.tHead.rows[0].cells.length;
    let room = this.shown;
    const bodies = [];
    for (const [name, own] of this.groups(rows)) {
      if (room <= 0) break;
      const head = name ? [make("tr", {}, make("th", { scope: "rowgroup", colSpan: width }, make("span", {}, name)))] : [];
      bodies.push(make("tbody", {}, ...head, ...own.slice(0, room).map(row => this.row(row, rank.get(row)))));
      room -= own.length;
    }
    for (const body of [...table.tBodies]) body.remove();
    table.append(...bodies);
    [...table.tHead.rows[0].cells].filter(head => head.querySelector("button")).forEach((head, place) => {
      const sorted = this.sort?.column === place - 1;
      const falling = this.sort && (place === 0 ? this.sort.reversed : this.smallFirst(place - 1) === this.sort.reversed);
      head.ariaSort = sorted ? (falling ? "descending" : "ascending") : "none";
    });
    const more = this.find(".more");
    more.hidden = rows.length <= this.shown;
    more.firstElementChild.textContent = Math.min(this.shown, rows.length) + " of " + rows.length + " rows";
  }

  row(row, rank) {
    const head = make("th", { scope: "row", title: row.name });
    if (rank) head.append(make("span", { className: "rank" }, rank), " ");
    head.append(row.label);
    if (row.signs) head.append(make("span", { className: "signs" }, row.signs));
    const cells = this.costs
      ? row.costs.map(cost => make("td", {}, cost?.[1] ?? ""))
      : row.means[this.view].map((mean, column) => this.cell(row, mean, column));
    if (this.uneven && !this.costs) cells.unshift(make("td", {}, row.costs[0][1]));
    return make("tr", {}, head, ...cells);
  }

  cell(row, mean, column) {
    if (mean === null) return make("td");
    const best = this.data.best[this.view][column] === row.number, tied = row.tied?.[this.view].includes(column);
    const number = mean.toFixed(2), cell = make("td", {}, best ? make("b", {}, number) : number);
    if (best) cell.classList.add("best");
    if ((best && this.data.compared) || tied) cell.classList.add("group");
    if (this.data.several) {
      const deviation = row.deviations?.[this.view][column] ?? null;
      cell.append(make("small", {}, deviation === null ? "" : " ± " + deviation.toFixed(2)));
    }
    if (this.data.compared) cell.append(make("i", {}, tied ? "≈" : ""));
    return cell;
  }
}

/** Fades the right edge of what scrolls sideways until its end is seen. */
function fadeCut(box) {
  const update = () => box.classList.toggle("cut", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  const observer = new ResizeObserver(update);
  for (const node of [box, ...box.children]) observer.observe(node);
  box.addEventListener("scroll", update);
}

/** A name of the legend highlights its row in all charts of its table. */
function highlight(charts) {
  const buttons = [...charts.querySelectorAll(".legend button")];
  for (const button of buttons) button.addEventListener("click", () => {
    button.ariaPressed = button.ariaPressed !== "true";
    const pressed = new Set(buttons.filter(one => one.ariaPressed === "true").map(one => one.value));
    charts.classList.toggle("focused", pressed.size > 0);
    for (const node of charts.querySelectorAll("[data-row]")) node.classList.toggle("focus", pressed.has(node.dataset.row));
  });
}

function iou(a, b) {
  const inter = Math.max(0, Math.min(a[1], b[1]) - Math.max(a[0], b[0]));
  const hull = Math.max(a[1], b[1]) - Math.min(a[0], b[0]);
  return hull > 0 ? inter / hull : 0;
}

/** The sentences of a table with the moments that each row predicts. */
class PredictionBrowser {
  constructor(browser) {
    this.find = name => browser.querySelector("." + name);
    this.data = JSON.parse(this.find("data").textContent);
    this.fill(this.find("split"), [...new Set(this.data.queries.map(q => q.split))].map(s => [s, s]));
    for (const name of ["right", "wrong"]) this.fill(this.find(name), [["", "any"], ...this.data.runs.map((run, i) => [i, run])]);
    for (const name of ["split", "right", "wrong", "iou"]) this.find(name).addEventListener("change", () => this.list());
    this.find("words").addEventListener("input", () => this.list());
    this.find("query").addEventListener("change", () => this.show());
    this.find("query").addEventListener("keydown", event => {
      const video = this.find("view").querySelector("video");
      if (event.key !== " " || !video) return;
      event.preventDefault();
      if (video.paused) video.play().catch(() => {}); else video.pause();
    });
    this.list();
  }

  fill(select, values) {
    select.append(...values.map(([value, text]) => make("option", { value }, text)));
  }

  /** Returns the IoU of the top-ranked moment. */
  first(query, answer) {
    return answer && answer.windows.length ? Math.max(0, ...query.moments.map(m => iou(m, answer.windows[0]))) : 0;
  }

  hits(query, run) {
    return this.first(query, query.answers[run]) >= +this.find("iou").value;
  }

  list() {
    const right = this.find("right").value, wrong = this.find("wrong").value, words = this.find("words").value.toLowerCase();
    const kept = this.data.queries.map((q, i) => [i, q]).filter(([, q]) => q.split === this.find("split").value
      && (right === "" || this.hits(q, right)) && (wrong === "" || !this.hits(q, wrong)) && q.text.toLowerCase().includes(words));
    const correct = q => this.data.runs.filter((_, run) => this.hits(q, run)).length;
    this.find("query").replaceChildren();
    this.fill(this.find("query"), kept.map(([i, q]) =>
      [i, q.text + "   (" + q.video + "; correct: " + correct(q) + " of " + this.data.runs.length + ")"]));
    this.find("count").textContent = kept.length + " sentences";
    this.find("query").selectedIndex = 0;
    this.show();
  }

  show() {
    const view = this.find("view"), query = this.data.queries[this.find("query").value];
    view.replaceChildren();
    if (!query) return;
    view.append(make("p", {}, query.text), make("p", { className: "note" }, "query " + query.id + ", video " + query.video));
    const cursor = make("div", { className: "cursor", hidden: true }), stage = make("div", { className: "stage" });
    const place = time => { cursor.hidden = false; cursor.style.left = 100 * time / query.duration + "%"; };
    let video = null;
    if (query.file) {
      video = make("video", { controls: true, muted: true, src: query.file });
      video.addEventListener("timeupdate", () => place(video.currentTime));
      view.append(video);
    }
    const seek = time => { place(time); if (video) { video.currentTime = time; video.play().catch(() => {}); } };
    stage.append(line("ground truth", query.moments, query.duration, "truth", seek));
    const said = this.data.narrations[query.video] || [];
    if (said.length) stage.append(line("narrations", said, query.duration, "said", seek));
    query.answers.forEach((answer, run) => { if (answer) stage.append(...this.answer(query, answer, run, seek)); });
    stage.append(axis(query.duration), cursor);
    view.append(stage);
    if (said.length) view.append(narrations(said, query.moments, seek));
  }

  /** Returns the line of one row, its frame scores and its curves. */
  answer(query, answer, run, seek) {
    const name = this.data.runs[run], colour = this.data.colours[run];
    const node = line(name, answer.windows, query.duration, colour, seek);
    node.append(make("output", { className: this.hits(query, run) ? "hit" : "" }, this.first(query, answer).toFixed(2)));
    const nodes = [node];
    if (answer.text) nodes.push(make("p", { className: "answer" }, answer.text));
    if (answer.scores) nodes.push(curve(answer.scores, colour));
    for (const [title, values] of Object.entries(answer.curves)) {
      const range = title + " of " + name + ": " + Math.min(...values) + " to " + Math.max(...values);
      nodes.push(make("span", { className: "name", title: range }, title), curve(values, colour));
    }
    return nodes;
  }
}

/** Draws moments on a time line; a click on a moment or on the line seeks. `kind`: "truth", "said", or a colour. */
function line(name, windows, duration, kind, seek) {
  const named = kind === "truth" || kind === "said";
  const bars = windows.map((window, i) => {
    const text = (named && window[2] ? window[2] : name + " " + (i + 1)) + ": " + window[0] + " to " + window[1] + " s";
    const bar = make("button", { type: "button", title: text, ariaLabel: text, className: named ? kind : i ? "later" : "first" });
    if (i) bar.tabIndex = -1;
    if (!named) bar.style.background = kind;
    bar.style.left = 100 * window[0] / duration + "%";
    bar.style.width = 100 * (window[1] - window[0]) / duration + "%";
    bar.addEventListener("click", event => { event.stopPropagation(); seek(window[0]); });
    return bar;
  });
  const node = make("div", { className: "line" }, ...bars.reverse(), make("span", { className: "label", title: name }, name));
  node.addEventListener("click", event => seek(duration * event.offsetX / node.clientWidth));
  return node;
}

function curve(scores, colour) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  const low = Math.min(...scores), range = Math.max(...scores) - low || 1;
  svg.setAttribute("class", "scores");
  svg.setAttribute("viewBox", "0 -0.05 " + scores.length + " 1.1");
  svg.setAttribute("preserveAspectRatio", "none");
  path.setAttribute("d", scores.map((s, i) => (i ? "L" : "M") + i + " " + (1 - (s - low) / range) + " H" + (i + 1)).join(" "));
  path.setAttribute("vector-effect", "non-scaling-stroke");
  path.style.fill = "none";
  path.style.stroke = colour;
  svg.append(path);
  return svg;
}

function axis(duration) {
  const node = make("div", { className: "axis" }), most = window.innerWidth < 640 ? 5 : 10;
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600].find(s => duration / s <= most) || duration;
  for (let t = 0; t <= duration; t += step) {
    const tick = make("span", {}, t + " s");
    tick.style.left = 100 * t / duration + "%";
    node.append(tick);
  }
  return node;
}

function narrations(said, moments, seek) {
  return make("ol", { className: "narrations" }, ...said.map(([start, end, text]) => {
    const inside = moments.some(m => start < m[1] && (end > m[0] || start >= m[0]));
    const times = make("b", {}, start.toFixed(1) + " to " + end.toFixed(1) + " s");
    const button = make("button", { type: "button", className: inside ? "inside" : "" }, times, text);
    button.addEventListener("click", () => seek(start));
    return make("li", {}, button);
  }));
}

/** Calls `build` when the element comes near the screen: its data may be large. */
function whenSeen(element, build) {
  const observer = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    observer.disconnect();
    build(element);
  }, { rootMargin: "600px" });
  observer.observe(element);
}

switchTheme();
for (const section of document.querySelectorAll("section[data-board]")) new Leaderboard(section);
for (const box of document.querySelectorAll(".box, .chart")) fadeCut(box);
for (const charts of document.querySelectorAll(".charts")) highlight(charts);
for (const browser of document.querySelectorAll(".browser")) whenSeen(browser, element => new PredictionBrowser(element));
document.addEventListener("keydown", event => {  // "/" goes to the first filter, as on many sites
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, select")) return;
  event.preventDefault();
  document.querySelector(".filter")?.focus();
});
