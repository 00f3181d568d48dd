// The page: connects the view, the panel and the server.

import { Changes, REPLACED, bytes, json } from "./api.js";
import { $, makeSlices, showChosen, showClasses, showFinished, showRun, showSlices, showSuggestions } from "./panel.js";
import { Viewer } from "./viewer.js";

const POLL = { idle: 4000, running: 700 }; // ms
const MOST_BRUSH = 31;

const viewer = new Viewer($("canvas"));
let state = null;
let changes = null;
let tool = "brush";
let chosen = 1; // class number
let active = 2; // axis of the plane that keys move in
let shownVersion = 0;
let suggestions = [];
let suggestion = -1;
const lastOpacity = { shown: "0.4", doubt: "0.6" };

function tell(text) {
  $("message").hidden = !text;
  $("message").textContent = text || "";
}

// Runs what may fail, and shows why
async function attempt(action) {
  try {
    tell("");
    return await action();
  } catch (error) {
    if (error.status === REPLACED) await look().catch(() => {}); // so that the newer one is shown
    tell(error.message);
    return null;
  }
}

function showSaved(how) {
  const error = how instanceof Error ? how : null;
  $("saved").className = error ? "failed" : how;
  const texts = { saved: "all saved", saving: "saving ...", waiting: "not saved: the program does not answer; trying again" };
  $("saved").textContent = error ? `not saved: ${error.message}` : texts[how];
  $("resend").hidden = !(changes && changes.failed);
}

// ---------------------------------------------------------------- painting

function setTool(name) {
  tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  viewer.setTool(tool, chosen + 1, Number($("size").value));
  $("size-text").textContent = $("size").value;
}

function choose(number) {
  if (number >= state.classes.length) return;
  chosen = number;
  showChosen(chosen);
  setTool(tool === "erase" || tool === "move" ? "brush" : tool);
}

function resize(by) {
  $("size").value = Math.min(Math.max(Number($("size").value) + by, 1), MOST_BRUSH);
  setTool(tool);
}

function changed(answer) {
  state.finished = answer.finished;
  state.undoable = answer.undoable;
  showState();
}

// A slice that the server has changed
function take(answer) {
  viewer.putSlice(answer.axis, answer.index, Uint8Array.from(atob(answer.voxels), (letter) => letter.charCodeAt(0)));
  changed(answer);
}

const undo = () => attempt(() => viewer.locked(async () => {
  const answer = await changes.post("api/undo");
  take(answer);
  viewer.goTo(answer.axis, answer.index);
}));
const place = (axis) => ({ axis, index: viewer.voxel()[axis] });
const finish = (axis, finished) =>
  attempt(async () => changed(await changes.post("api/finished", { ...place(axis), finished }))).then(showState);
const accept = (finished) => attempt(() => viewer.locked(async () =>
  take(await changes.post("api/accept", { ...place(active), finished, version: shownVersion }))));

// entries: function of the classes so far, as an edit before this one may not be saved yet
async function editClasses(entries) {
  await attempt(() => {
    changes.check();
    return changes.add(async (after) => {
      const answer = await json("POST", "api/classes", { after }, entries(state.classes));
      state.classes = answer.classes;
      return answer;
    });
  });
  viewer.setColors(state.classes);
  showClasses(state.classes, chosen, { choose, edit });
}

function edit(number, entry) {
  editClasses((classes) => classes.map(({ name, color }, other) => (other === number ? entry : { name, color })));
}

function withAnother(classes) {
  const names = new Set(classes.map((entry) => entry.name));
  let number = classes.length;
  while (names.has(`class ${number}`)) number += 1;
  return [...classes.map(({ name, color }) => ({ name, color })), { name: `class ${number}` }];
}

// ---------------------------------------------------------------- slices

function go(axis, index) {
  active = axis;
  const layout = Number($("layout").value);
  if (layout < 3 && layout !== 2 - axis) setLayout(2 - axis);
  viewer.goTo(axis, index);
}

function setLayout(layout) {
  $("layout").value = layout;
  if (layout < 3) active = 2 - layout;
  viewer.setLayout(layout);
  showState();
}

function nextSuggested() {
  if (!suggestions.length) return;
  suggestion = (suggestion + 1) % suggestions.length;
  go(suggestions[suggestion].axis, suggestions[suggestion].index);
}

function showState() {
  showSlices(state.scan, viewer.voxel(), active, state.finished);
  showFinished(state.scan, state.finished, go);
  suggestions = showSuggestions(state.scan, state.found ? state.found.suggestions : [], state.finished, go);
  $("undo").disabled = !state.undoable;
}

// ---------------------------------------------------------------- densify

function showOpacity() {
  viewer.setOpacity(Number($("shown").value), Number($("doubt").value));
}

function toggle(id) {
  if (Number($(id).value) > 0) lastOpacity[id] = $(id).value;
  $(id).value = Number($(id).value) > 0 ? 0 : lastOpacity[id];
  showOpacity();
}

const densify = () => attempt(async () => {
  await changes.settled(); // the last stroke counts, too
  const answer = await json("POST", "api/densify", { minutes: $("minutes").value });
  if (answer.unfinished.length) {
    const more = answer.more ? ` and ${answer.more} more` : "";
    tell(`Painted, but not finished, so that only painted voxels count: ${answer.unfinished.join(", ")}${more}.`);
  }
  await look();
});

let looking = Promise.resolve();

// Reads the server's state, and what it has found since; one reading after the other, so that the newest stays
function look() {
  const result = looking.then(readState);
  looking = result.catch(() => {});
  return result;
}

async function readState() {
  const now = await json("GET", "api/state");
  Object.assign(state, { run: now.run, found: now.found, fault: now.fault, report: now.report });
  if (now.found && now.found.version !== shownVersion) {
    const version = { version: now.found.version };
    const files = ["api/prediction.nii", "api/confidence.nii"].map((path) => bytes(path, version));
    try {
      await viewer.setFound(...(await Promise.all(files)), Number($("shown").value), Number($("doubt").value));
      shownVersion = now.found.version;
      suggestion = -1;
      document.body.dataset.found = `${now.found.kind} ${shownVersion}`;
    } catch (error) {
      if (error.status !== REPLACED) throw error; // the next reading shows the newer one
    }
  }
  showRun(state);
  showState();
}

async function poll() {
  try {
    await look();
    if (!changes.waiting && !changes.broken) showSaved("saved");
  } catch {
    if (!changes.failed && !changes.broken) showSaved("waiting");
  }
  setTimeout(poll, POLL[state.run.state === "running" || state.run.state === "stopping" ? "running" : "idle"]);
}

// ---------------------------------------------------------------- start

const KEYS = {
  b: () => setTool("brush"), g: () => setTool("fill"), e: () => setTool("erase"), v: () => setTool("move"),
  u: undo, "[": () => resize(-2), "]": () => resize(2), n: nextSuggested, d: densify,
  f: () => finish(active, !state.finished[active].includes(viewer.voxel()[active])),
  a: () => accept(true), c: () => accept(false), o: () => toggle("shown"), p: () => toggle("doubt"),
  ArrowUp: () => go(active, viewer.voxel()[active] + 1), ArrowDown: () => go(active, viewer.voxel()[active] - 1),
};

function onKey(event) {
  const writes = event.target.matches("input[type=text], input[type=number], select");
  if (writes || viewer.stroke || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = event.ctrlKey ? { z: undo }[key] : KEYS[key] || (/^[1-9]$/.test(key) ? () => choose(Number(key) - 1) : null);
  if (!action) return;
  event.preventDefault();
  action();
}

function connect() {
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  $("size").addEventListener("input", () => setTool(tool));
  $("layout").addEventListener("change", () => setLayout(Number($("layout").value)));
  for (const id of ["shown", "doubt"]) $(id).addEventListener("input", showOpacity);
  const clicks = {
    undo, densify, next: nextSuggested, accept: () => accept(true), correct: () => accept(false), "add-class": () => editClasses(withAnother), resend: () => changes.resend(),
    stop: () => attempt(() => json("POST", "api/stop").then(look)),
    export: () => attempt(async () => {
      await changes.settled();
      const answer = await json("POST", "api/export");
      const values = Object.entries(answer.values).map(([value, name]) => `${value} ${name}`);
      $("exported").textContent = `Written: ${answer.path}\n(${values.join(", ")})`;
    }),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  window.addEventListener("keydown", onKey, true); // before the canvas, which passes no key on
  window.addEventListener("beforeunload", (event) => { if (changes.waiting) event.preventDefault(); });
  viewer.onStroke = (axis, index, voxels) => {
    active = axis;
    attempt(async () => changed(await changes.paint(axis, index, voxels)));
  };
  viewer.onMove = (voxel, axis) => {
    if (axis !== null) active = axis;
    $("where").textContent = `voxel ${voxel.map((i, a) => (state.scan.flipped[a] ? state.scan.shape[a] - 1 - i : i)).join(", ")}`;
    showSlices(state.scan, voxel, active, state.finished);
  };
}

async function start() {
  state = await json("GET", "api/state");
  document.title = `${state.scan.name} - sparse3dunet annotate`;
  $("name").textContent = state.scan.name;
  $("minutes").value = state.minutes;
  $("channel-row").hidden = state.scan.channels < 2;
  $("channel").max = state.scan.channels - 1;
  const channel = Math.min(Number(new URLSearchParams(location.search).get("channel") || 0), state.scan.channels - 1);
  $("channel").value = channel;
  $("channel").addEventListener("change", () => { location.search = `?channel=${$("channel").value}`; });
  await viewer.open(state.scan.shape, channel, await bytes("api/painted"));
  changes = new Changes(state.sequence, showSaved);
  viewer.setColors(state.classes);
  showClasses(state.classes, chosen, { choose, edit });
  makeSlices(state.scan, { go, finish, activate: (axis) => { active = axis; showState(); } });
  connect();
  setTool(tool);
  setLayout(3);
  viewer.goTo(active, viewer.voxel()[active]);
  showSaved("saved");
  await poll();
  Object.assign(window, { viewer }); // for those who want to look, and for tests
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  tell(`The page cannot start: ${error.message}. It needs a browser with WebGL 2; reload it to try again.`);
  showSaved(error);
});
