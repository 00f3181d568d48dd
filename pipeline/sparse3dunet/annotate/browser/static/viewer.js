// The scan, what is painted on it, and what densify has found: three planes and 3D by NiiVue.

import { Niivue, NVImage, DRAG_MODE, MULTIPLANAR_TYPE, SHOW_RENDER, SLICE_TYPE } from "./niivue.js";

const HEADER = 352; // bytes before the voxels of an uncompressed NIfTI file
const PAINTED = 0.65; // opacity
const CONFIDENT = 25; // doubt (1 - confidence, 0 to 255) up to which nothing is shown
const DOUBTFUL = 140; // doubt from which on the colour stays the same

const channelsOf = (colors) => {
  const numbers = colors.map((color) => [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16)));
  return { R: numbers.map((n) => n[0]), G: numbers.map((n) => n[1]), B: numbers.map((n) => n[2]) };
};

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.onStroke = () => {}; // (axis, index, voxels): what was painted in one movement
    this.onMove = () => {}; // (voxel, axis or null)
    this.stroke = null; // axis and index of the slice that is painted on while the button is down
    this.paints = true;
    this.locks = 0;
    this.found = null;
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.9, 0.75, 0.2, 0.6],
      crosshairWidth: 0.2,
      crosshairGap: 4,
      fontColor: [0.75, 0.78, 0.82, 1],
      isNearestInterpolation: true,
      isForceMouseClickToVoxelCenters: true,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarEqualSize: true,
      dragMode: DRAG_MODE.contrast,
      dragAndDropEnabled: false,
      maxDrawUndoBitmaps: 1, // the server undoes
      loadingText: "",
      logLevel: "error",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
  }

  async open(shape, channel, painted) {
    this.shape = shape;
    await this.nv.attachToCanvas(this.canvas);
    // NiiVue's own keys would move twice, or do what the page does not know of
    this.canvas.addEventListener("keydown", (event) => event.stopImmediatePropagation(), true);
    this.canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation(), true);
    await this.nv.loadVolumes([{ url: `api/scan.nii?channel=${channel}`, name: "scan.nii", colormap: "gray" }]);
    this.nv.createEmptyDrawing();
    this.nv.drawOpacity = PAINTED;
    this.putAll(painted);
    this.nv.onLocationChange = (place) => this.moved(place);
    for (const kind of ["mouseup", "touchend"]) window.addEventListener(kind, () => setTimeout(() => this.endStroke()));
    this.canvas.addEventListener("mouseleave", () => setTimeout(() => this.endStroke()));
    this.canvas.addEventListener("mousedown", () => this.endStroke(), true);
    const whileDrawing = (event) => { if (this.stroke) event.stopImmediatePropagation(); };
    window.addEventListener("wheel", whileDrawing, { capture: true, passive: true }); // no other slice during a stroke
  }

  // ---------------------------------------------------------------- painting

  // tool: brush, fill, erase or move; value: class number + 1; size in voxels, odd
  setTool(tool, value, size) {
    this.nv.opts.penSize = tool === "fill" ? 1 : size; // an outline is thin, so that it can be exact
    this.nv.setPenValue(tool === "erase" ? 0 : value, tool === "fill");
    this.paints = tool !== "move";
    this.nv.setDrawingEnabled(this.paints && !this.locks);
    this.canvas.style.cursor = tool === "move" ? "default" : "crosshair";
  }

  // Runs what may change a slice on the server; meanwhile nothing can be painted, which it would overwrite
  async locked(action) {
    this.endStroke();
    this.locks += 1;
    this.nv.setDrawingEnabled(false);
    try {
      return await action();
    } finally {
      this.locks -= 1;
      this.nv.setDrawingEnabled(this.paints && !this.locks);
    }
  }

  moved(place) {
    const voxel = [0, 1, 2].map((axis) => Math.round(place.vox[axis]));
    const axis = Number.isInteger(place.axCorSag) && place.axCorSag <= SLICE_TYPE.SAGITTAL ? 2 - place.axCorSag : null;
    if (this.nv.opts.drawingEnabled && this.nv.drawPenAxCorSag >= 0) {
      const across = 2 - this.nv.drawPenAxCorSag;
      if (this.stroke && (this.stroke.axis !== across || this.stroke.index !== voxel[across])) this.endStroke();
      this.stroke = { axis: across, index: voxel[across] };
    }
    this.onMove(voxel, axis);
  }

  endStroke() {
    if (!this.stroke) return;
    const { axis, index } = this.stroke;
    this.stroke = null;
    const voxels = this.sliceOf(this.nv.drawBitmap, axis, index);
    const before = this.sliceOf(this.known, axis, index);
    if (voxels.every((value, place) => value === before[place])) return;
    this.write(this.known, axis, index, voxels);
    this.onStroke(axis, index, voxels);
  }

  putAll(painted) {
    this.known = painted;
    this.nv.drawBitmap.set(painted);
    this.nv.refreshDrawing(true);
  }

  putSlice(axis, index, voxels) {
    this.write(this.known, axis, index, voxels);
    this.write(this.nv.drawBitmap, axis, index, voxels);
    this.nv.refreshDrawing(true);
  }

  // Calls a function with each place in the volume, and in the slice: the first axis is the fastest in both
  along(axis, index, call) {
    const [nx, ny] = this.shape;
    const strides = [1, nx, nx * ny];
    const [fast, slow] = [0, 1, 2].filter((other) => other !== axis);
    let place = 0;
    for (let j = 0; j < this.shape[slow]; j++) {
      let at = index * strides[axis] + j * strides[slow];
      for (let i = 0; i < this.shape[fast]; i++, at += strides[fast]) call(at, place++);
    }
    return place;
  }

  sliceOf(volume, axis, index) {
    const [fast, slow] = [0, 1, 2].filter((other) => other !== axis);
    const voxels = new Uint8Array(this.shape[fast] * this.shape[slow]);
    this.along(axis, index, (at, place) => { voxels[place] = volume[at]; });
    return voxels;
  }

  write(volume, axis, index, voxels) {
    this.along(axis, index, (at, place) => { volume[at] = voxels[place]; });
  }

  // ---------------------------------------------------------------- what is shown

  setLayout(layout) {
    this.nv.setSliceType(layout);
  }

  goTo(axis, index) {
    if (this.stroke) return;
    const voxel = this.voxel();
    voxel[axis] = Math.min(Math.max(index, 0), this.shape[axis] - 1);
    this.nv.scene.crosshairPos = this.nv.vox2frac(voxel);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  voxel() {
    return [...this.nv.frac2vox(this.nv.scene.crosshairPos)].map(Math.round);
  }

  setColors(classes) {
    const shown = channelsOf(["#000000", ...classes.map((entry) => entry.color)]);
    this.nv.setDrawColormap({ ...shown, A: [0, ...classes.map(() => 255)], labels: ["", ...classes.map((entry) => entry.name)] });
    this.labels = {
      ...channelsOf(classes.map((entry) => entry.color)),
      A: classes.map((_, number) => (number ? 255 : 0)),
      labels: classes.map((entry) => entry.name),
    };
    if (this.found) {
      this.found.segmentation.setColormapLabel(this.labels);
      this.nv.updateGLVolume();
    }
  }

  // Both as NIfTI; shown in place of what was shown before
  async setFound(segmentation, confidence, opacity, doubtOpacity) {
    const doubt = confidence.slice();
    for (let i = HEADER; i < doubt.length; i++) doubt[i] = 255 - doubt[i];
    if (this.found) {
      this.found.segmentation.img.set(segmentation.subarray(HEADER));
      this.found.doubt.img.set(doubt.subarray(HEADER));
      this.nv.updateGLVolume();
    } else {
      this.found = {
        segmentation: await NVImage.new(segmentation.buffer, "segmentation.nii", "gray", opacity),
        doubt: await NVImage.new(doubt.buffer, "doubt.nii", "hot", doubtOpacity),
      };
      this.found.segmentation.setColormapLabel(this.labels);
      Object.assign(this.found.doubt, { cal_min: CONFIDENT, cal_max: DOUBTFUL });
      this.nv.addVolume(this.found.segmentation);
      this.nv.addVolume(this.found.doubt);
    }
    this.setOpacity(opacity, doubtOpacity);
  }

  setOpacity(segmentation, doubt) {
    if (!this.found) return;
    this.nv.setOpacity(1, segmentation);
    this.nv.setOpacity(2, doubt);
  }
}
