// The panel beside the view: classes, slices, and what densify tells.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The file's own index of a slice, which reports and other programs show
export const shownIndex = (scan, axis, index) => (scan.flipped[axis] ? scan.shape[axis] - 1 - index : index);

// classes: name and colour by class number; on: {choose, edit}
export function showClasses(classes, chosen, on) {
  const rows = classes.map((entry, number) => {
    const name = element("input", { type: "text", value: entry.name, maxLength: 60, ariaLabel: `name of class ${number}` });
    const color = element("input", { type: "color", value: entry.color, ariaLabel: `colour of ${entry.name}` });
    const edit = () => on.edit(number, { name: name.value.trim(), color: color.value });
    name.addEventListener("change", edit);
    color.addEventListener("change", edit);
    const key = element("kbd", { textContent: number < 9 ? number + 1 : "" });
    const row = element("div", { className: number === chosen ? "class chosen" : "class" }, key, color, name);
    row.dataset.number = number;
    row.addEventListener("click", () => on.choose(number));
    return row;
  });
  $("classes").replaceChildren(...rows);
}

export function showChosen(number) {
  for (const row of $("classes").children) row.classList.toggle("chosen", Number(row.dataset.number) === number);
}

// on: {go, finish, activate}
export function makeSlices(scan, on) {
  const rows = [2, 1, 0].map((axis) => {
    const place = element("input", { type: "number", min: 0, max: scan.shape[axis] - 1, id: `slice-${axis}` });
    place.addEventListener("change", () => on.go(axis, shownIndex(scan, axis, Number(place.value))));
    const box = element("input", { type: "checkbox", id: `finished-${axis}` });
    box.addEventListener("change", () => on.finish(axis, box.checked));
    const label = element("label", {}, box, " finished");
    const name = element("td", { textContent: scan.planes[axis] });
    const row = element("tr", { id: `row-${axis}` }, name, element("td", {}, place), element("td", {}, label));
    row.addEventListener("pointerdown", () => on.activate(axis));
    return row;
  });
  $("slices").tBodies[0].replaceChildren(...rows);
}

export function showSlices(scan, voxel, active, finished) {
  for (const axis of [0, 1, 2]) {
    if (document.activeElement !== $(`slice-${axis}`)) $(`slice-${axis}`).value = shownIndex(scan, axis, voxel[axis]);
    $(`finished-${axis}`).checked = finished[axis].includes(voxel[axis]);
    $(`row-${axis}`).classList.toggle("active", axis === active);
  }
}

export function showFinished(scan, finished, go) {
  const links = [2, 1, 0].flatMap((axis) =>
    finished[axis].map((index) => {
      const link = element("a", { textContent: `${scan.planes[axis]} ${shownIndex(scan, axis, index)}` });
      link.addEventListener("click", () => go(axis, index));
      return link;
    })
  );
  $("finished").replaceChildren(links.length ? "Finished: " : "No slice is finished yet.", ...links);
}

export function showSuggestions(scan, suggestions, finished, go) {
  const open = suggestions.filter((entry) => !finished[entry.axis].includes(entry.index));
  const links = open.map((entry) => {
    const index = shownIndex(scan, entry.axis, entry.index);
    const link = element("a", { textContent: `${entry.plane} ${index}`, title: `benefit ${entry.benefit}` });
    link.addEventListener("click", () => go(entry.axis, entry.index));
    return link;
  });
  $("suggested").replaceChildren(links.length ? "Worth annotating: " : "No slice is suggested.", ...links);
  $("next").disabled = !links.length;
  return open;
}

const KINDS = { preview: "preview", refined: "without the network so far", result: "result" };

function qualityText(quality) {
  const [mean, interval] = [quality.mean_dice, quality.mean_dice_interval];
  if (typeof mean !== "number") return "";
  return `, expected mean Dice ${mean.toFixed(2)}${interval ? ` (${interval.map((end) => end.toFixed(2)).join(" to ")})` : ""}`;
}

export function showRun(state) {
  const { run, found } = state;
  const runs = run.state === "running" || run.state === "stopping";
  $("progress").hidden = !runs;
  $("progress").value = Math.min(run.seconds / (60 * run.minutes || 1), 1);
  $("stop").hidden = !runs;
  $("stop").disabled = run.state === "stopping" || run.preview_after === null;
  $("densify").textContent = runs ? "Start again" : "Densify";
  const lines = [];
  if (runs) lines.push(`${run.state === "stopping" ? "Stopping" : "Running"}, ${Math.round(run.seconds)} s of ${60 * run.minutes} s`);
  if (run.state === "failed") lines.push(`The run ended with an error: ${run.error}`);
  if (run.state === "done") lines.push(`Done in ${Math.round(run.seconds)} s.`);
  if (run.preview_after !== null) lines.push(`Preview after ${run.preview_after} s.`);
  if (found) lines.push(`Shown: ${KINDS[found.kind]}${qualityText(found.quality)}.`);
  if (state.fault) lines.push(state.fault);
  const last = run.lines.at(-1) || "";
  if (runs && !last.startsWith("Preview after")) lines.push(last);
  $("run").textContent = lines.join("\n");
  $("found").hidden = !found;
  $("report").hidden = !state.report;
}
