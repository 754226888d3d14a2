"use strict";
// Text reaches the page as text only, never as markup: board names and prompts are strangers' words.
const by = (id) => document.getElementById(id);
const media = (...parts) => ["media", ...parts].join("/");
const SIGNS = { done: "✓", sampling: "▶", decoding: "▶", partial: "◐", waiting: "·" };
const WORDS = { done: "rendered", sampling: "being sampled", decoding: "being decoded", partial: "begun", waiting: "waiting" };
let boards = [];
let runs = [];
let offset = 0; // of the server's clock, in seconds

function make(tag, about = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const plural = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;
function clock(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
const now = () => Date.now() / 1000 + offset;
const when = (seconds) => new Date((seconds - offset) * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

// A part of the page is made anew when what it shows has changed; whatever had the focus gets it back.
const shown = new WeakMap();
function show(place, value, build) {
  const text = JSON.stringify(value);
  if (shown.get(place) === text) return;
  shown.set(place, text);
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const open = new Set([...place.querySelectorAll("details[open]")].map((each) => each.dataset.key));
  place.replaceChildren(...build(value));
  for (const each of place.querySelectorAll("details")) each.open = open.has(each.dataset.key);
  if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

function fact(name, value) {
  return value ? [make("div", {}, make("dt", {}, name), make("dd", {}, value))] : [];
}
function facts(run) {
  const left = run.end && Math.max(run.end - now(), 0);
  return [
    ...fact("board", run.boards.length > 1 ? boards[run.current]?.name : ""),
    ...fact("segments", `${run.finished} of ${run.segments}`),
    ...fact("so far", clock(now() - run.started)),
    ...fact(run.at_least ? "left, at least" : "left, about", run.end ? clock(left) : ""),
    ...fact("step", run.steps > 1 ? `${run.step} of ${run.steps}` : ""),
    ...fact("per step", run.step_seconds ? `${run.step_seconds.toFixed(1)} s` : ""),
    ...fact("GPU memory", run.memory ? `${gib(run.memory[0])} of ${gib(run.memory[1])} GiB` : ""),
    ...fact("disk, free", run.disk ? `${gib(run.disk[0])} GiB` : ""),
    ...fact("workers", run.workers > 1 ? String(run.workers) : ""),
  ];
}
function next(run) {
  for (const number of run.boards) {
    const board = boards[number];
    const clip = board && board.clips.find((each) => each.state === "waiting" || each.state === "partial");
    const of = run.boards.length > 1 ? ` of ${board?.name}` : "";
    if (clip) return `Next: clip ${clip.number} (${clip.id})${of}`;
    for (const { number: place, id, takes } of board ? board.clips : []) {
      const take = takes.find((each) => each.state === "waiting" || each.state === "partial");
      if (take) return `Next: take ${take.number} of clip ${place} (${id})${of}`;
    }
  }
  return "";
}

function runCard(run) {
  const names = run.boards.map((number) => boards[number]?.name).filter(Boolean);
  const title = names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
  const active = run.state === "running" || run.state === "hanging";
  const bar = make("i");
  bar.style.width = `${100 * run.fraction}%`;
  const what = make("div", { class: "what" },
    make("h3", {}, `${title} `, make("span", { class: `badge ${run.state}` }, run.state)),
    make("p", { class: "doing" }, active ? sentence(run.now) : ""),
    run.state === "hanging" || run.state === "died" ? make("p", { class: "note", role: "alert" }, sentence(run.message)) : null,
    !active ? null : make("div", { class: "bar", role: "progressbar", "aria-label": "segments rendered", "aria-valuemin": 0, "aria-valuemax": run.segments, "aria-valuenow": run.finished }, bar),
    active ? make("dl", { class: "facts", "data-run": run.run }, ...facts(run)) : null,
    active && next(run) ? make("p", { class: "quiet" }, next(run)) : null,
    active ? actions(run) : null,
    run.messages.length ? make("details", { "data-key": `messages ${run.run}` },
      make("summary", { "data-key": `summary ${run.run}` }, plural(run.messages.length, "message")),
      make("ul", {}, ...run.messages.map((text) => make("li", {}, text)))) : null);
  const board = active && boards[run.current];
  return make("article", { class: `run ${run.state}` }, what, board?.live ? picture(board, run) : null);
}
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
function picture(board, run) {
  const image = make("img", { src: `${media(board.number, "live")}?${board.live}`, alt: `Preview of clip ${run.clip ?? ""}, as it is so far` });
  image.addEventListener("error", () => image.closest("figure")?.remove());
  return make("figure", {}, image, make("figcaption", {}, run.workers > 1 ? "The clip that changed last" : `Clip ${run.clip ?? ""} so far`));
}
function actions(run) {
  const said = make("span", { class: "quiet", role: "status" }, run.stopping ? "Stop is requested." : "");
  const button = (stop, text, sure) => confirmed(text, sure, { disabled: run.stopping && stop === "clip", "data-key": `${stop} ${run.run}` },
    () => post("stop", { run: run.run, stop }, (text) => { said.textContent = text; }, "Stop is requested."));
  return make("div", { class: "actions" },
    button("clip", "Stop after this clip", "Really stop after this clip?"),
    button("now", "Stop now", "Really stop now?"), said);
}
// A button that does something only when it is pressed again.
function confirmed(text, sure, about, act) {
  const made = make("button", { type: "button", ...about }, text);
  made.addEventListener("click", () => {
    if (made.classList.contains("sure")) { act(); return; }
    made.classList.add("sure");
    made.textContent = sure;
    setTimeout(() => { made.classList.remove("sure"); made.textContent = text; }, 5000);
  });
  return made;
}
async function post(name, body, say, done) {
  say("Asking…");
  try {
    const answer = await fetch(name, { method: "POST", body: JSON.stringify(body) });
    say(answer.ok ? done : `Not possible: ${await answer.text()}`);
  } catch {
    say("The server does not answer.");
  }
}

function boardRow(board) {
  const row = make("li", {});
  const count = `${board.finished} of ${plural(board.clips.length, "clip")}, ${board.seconds} s, ${board.engine}`;
  const play = board.film || board.partial;
  const header = make("header", {},
    make("h3", {}, board.name), make("span", { class: `badge ${board.state}` }, board.state),
    make("small", {}, board.title ? `${board.title} · ${count}` : count),
    play ? make("button", { type: "button", "data-key": `film ${board.number}`, onclick: () => playFilm(board) }, board.film ? "Play film" : "Play what exists") : null);
  row.append(header);
  if (board.message) row.append(make("p", { class: "note" }, board.message));
  row.append(make("div", { class: "clips" }, ...board.clips.map((clip) => cell(board, clip))));
  return row;
}
function cell(board, clip) {
  const takes = clip.takes.length ? `${clip.takes.filter((take) => take.state === "done").length}/${plural(clip.takes.length, "take")}` : "";
  const label = `Clip ${clip.number}, ${clip.id}: ${WORDS[clip.state]}${clip.segments > 1 ? `, ${clip.done} of ${clip.segments} segments` : ""}${takes ? `, ${takes.replace("/", " of ")} rendered` : ""}`;
  return make("button", { type: "button", class: `cell ${clip.state}`, title: `${clip.id}: ${clip.prompt}`, "aria-label": label, "data-key": `clip ${board.number} ${clip.number}`, onclick: () => playClip(board, clip) },
    make("b", {}, String(clip.number)), make("span", { "aria-hidden": "true" }, SIGNS[clip.state]),
    takes ? make("small", { "aria-hidden": "true" }, takes) : null);
}

// The takes of the clip that the player shows, side by side.
let opened = null; // the board's path, the clip's id, and what became of the last request
let moving = false;
function drawTakes() {
  const board = opened && boards.find((each) => each.path === opened.path);
  const clip = board?.clips.find((each) => each.id === opened.clip);
  const place = by("takes");
  place.hidden = !clip?.takes.length;
  if (place.hidden) return;
  place.style.setProperty("--aspect", `${board.width} / ${board.height}`);
  show(place, [board.number, board.path, board.digest, clip.number, clip.takes], () => takesOf(board, clip));
}
function takesOf(board, clip) {
  const say = (text) => { opened.said = text; by("takes-said").textContent = text; };
  const address = (take, kind) => `${media(board.number, "take", clip.number - 1, take.number, kind)}?${take.seed}`;
  const images = clip.takes.map((take) => take.state === "done" ? make("img", { src: address(take, "still"), alt: `Take ${take.number} of clip ${clip.id}` }) : null);
  const toggle = make("button", { type: "button", "data-key": "play takes" });
  const move = async (on) => {
    moving = on;
    toggle.textContent = on ? "Stop" : "Play side by side";
    toggle.setAttribute("aria-pressed", on);
    const shown = images.map((image, index) => [image, clip.takes[index]]).filter(([image]) => image);
    // all are fetched before one starts, so that they are in step
    const loops = on ? await Promise.all(shown.map(([, take]) => fetch(address(take, "loop")).then((answer) => answer.blob()).catch(() => null))) : [];
    if (moving !== on) return;
    shown.forEach(([image, take], index) => {
      if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
      image.src = loops[index] ? URL.createObjectURL(loops[index]) : address(take, "still");
    });
  };
  toggle.addEventListener("click", () => move(!moving));
  move(moving);
  const card = (take, image) => make("li", { class: take.picked ? "picked" : "" },
    image ?? make("p", { class: "empty" }, WORDS[take.state] === "waiting" ? "not rendered yet" : WORDS[take.state]),
    make("h3", {}, `Take ${take.number} `, make("small", {}, `seed ${take.seed}`)),
    take.picked ? make("p", { class: "using" }, "picked")
      : confirmed(`Use take ${take.number}`, `Really use take ${take.number}?`, { "data-key": `take ${take.number}` },
        () => post("pick", { path: board.path, digest: board.digest, clip: clip.id, take: take.number }, say, `Take ${take.number} is written into the board. Render it again for the film.`)));
  return [
    make("div", {}, make("strong", {}, plural(clip.takes.length, "take")), images.some(Boolean) ? toggle : null,
      make("span", { class: "quiet", role: "status", id: "takes-said" }, opened.said)),
    make("ul", {}, ...clip.takes.map((take, index) => card(take, images[index]))),
  ];
}

function play(title, sources, note, prompt) {
  const video = by("video");
  by("player-title").textContent = title;
  by("player-note").textContent = note;
  by("player-prompt").textContent = prompt;
  let part = 0;
  video.hidden = !sources.length;
  video.onended = () => { part += 1; if (part < sources.length) { video.src = sources[part]; video.play().catch(() => {}); } };
  video.onerror = () => { if (video.getAttribute("src")) by("player-note").textContent = "This browser cannot play it: the codec of the board is not one of its own, or the file was replaced."; };
  if (sources.length) video.src = sources[0]; else video.removeAttribute("src");
  by("player").showModal();
  if (sources.length) video.play().catch(() => {});
}
function playFilm(board) {
  const kind = board.film ? "film" : "partial";
  play(board.name, [`${media(board.number, kind)}?${board[kind]}`], board.film ? "The finished film." : "What exists so far of the film.", "");
}
function playClip(board, clip) {
  const sources = [...Array(clip.parts).keys()].map((part) => media(board.number, "clip", clip.number - 1, part));
  const note = `${WORDS[clip.state]}, ${clip.seconds} s, seed ${clip.seed}${clip.state === "done" && !clip.parts ? "; it is not encoded yet" : ""}`;
  opened = { path: board.path, clip: clip.id, said: "" };
  moving = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  play(`${clip.number}. ${clip.id}`, sources, sentence(note), clip.prompt);
  drawTakes();
}

function pastRow(run) {
  const names = run.boards.map((number) => boards[number]?.name).filter(Boolean);
  return make("tr", {},
    make("td", {}, when(run.started)), make("td", { class: "wide" }, names.slice(0, 5).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "")),
    make("td", {}, `${run.finished} of ${run.segments}`), make("td", {}, clock(run.ended - run.started)),
    make("td", {}, make("span", { class: `badge ${run.state}` }, run.state)));
}

function draw() {
  const active = runs.filter((run) => run.state === "running" || run.state === "hanging");
  const newest = runs[0];
  const cards = newest && newest.state === "died" && !active.length ? [newest] : active;
  const places = by("runs");
  const quiet = boards.length ? "No render is running." : "There is no board here.";
  if (!cards.length) show(places, quiet, () => [make("p", { class: "quiet" }, quiet)]);
  else {
    const images = cards.map((run) => [boards[run.current]?.live, next(run), run.boards.map((number) => boards[number]?.name)]);
    show(places, [cards, images], () => cards.map(runCard));
  }
  const list = by("boards");
  while (list.children.length > boards.length) list.lastElementChild.remove();
  boards.forEach((board, index) => {
    if (!list.children[index]) list.append(make("li", {}));
    show(list.children[index], board, () => [...boardRow(board).childNodes]);
  });
  drawTakes();
  const past = runs.filter((run) => !cards.includes(run));
  by("past-section").hidden = !past.length;
  show(by("past"), past, () => past.map(pastRow));
  document.title = active.length ? `${active[0].finished}/${active[0].segments} svi-story` : "svi-story";
}
function tick() {
  for (const run of runs) {
    const place = document.querySelector(`dl[data-run="${CSS.escape(run.run)}"]`);
    if (place && (run.state === "running" || run.state === "hanging")) place.replaceChildren(...facts(run));
  }
}

function connect() {
  const link = by("link");
  const say = (text, kind) => { link.textContent = text; link.className = `link ${kind}`; };
  const source = new EventSource("events");
  source.addEventListener("open", () => say("Live", "on"));
  source.addEventListener("error", () => {
    say(source.readyState === EventSource.CLOSED ? "Not connected: open the address that svi-story watch prints" : "Not connected; trying again…", "off");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
  source.addEventListener("clock", (event) => { offset = Number(event.data) - Date.now() / 1000; });
  source.addEventListener("boards", (event) => {
    const found = JSON.parse(event.data);
    boards = found.boards;
    const problems = [...found.problems, ...found.rejected.map((each) => `${each.name}: ${each.problems.join("\n")}`)];
    show(by("problems"), problems, () => problems.map((text) => make("p", { class: "note", role: "alert" }, text)));
    draw();
  });
  source.addEventListener("runs", (event) => { runs = JSON.parse(event.data); draw(); });
}
by("player").addEventListener("close", () => { const video = by("video"); video.pause(); video.removeAttribute("src"); video.load(); opened = null; moving = false; by("takes").replaceChildren(); by("takes").hidden = true; shown.delete(by("takes")); });
setInterval(tick, 1000);
connect();
