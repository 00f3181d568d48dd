// The server's side: requests, and a queue of changes that are sent one after the other until each is saved.

const RETRY_AFTER = 2000; // ms
const SOON = 50; // ms
const OUTDATED = 409; // status: the annotation was changed elsewhere
export const REPLACED = 412; // status: there is a newer segmentation

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(method, path, params = {}, body = undefined, headers = {}) {
  const query = new URLSearchParams(params).toString();
  const answer = await fetch(`${path}${query ? `?${query}` : ""}`, { method, body, headers, cache: "no-store" });
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({}));
    throw new ServerError(answer.status, content.error || `the server answers ${answer.status} ${answer.statusText}`);
  }
  return answer;
}

export async function json(method, path, params, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return (await send(method, path, params, body === undefined ? undefined : JSON.stringify(body), headers)).json();
}

export async function bytes(path, params) {
  return new Uint8Array(await (await send("GET", path, params)).arrayBuffer());
}

async function gzip(data) {
  const stream = new Blob([data]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Changes of the annotation. `after` tells the server which state the page knows, so that two windows cannot mix theirs.
export class Changes {
  constructor(sequence, onState) {
    this.sequence = sequence;
    this.onState = onState; // called with "saved", "saving", "waiting" (no connection) or an error
    this.waiting = 0;
    this.last = Promise.resolve();
    this.broken = null; // error after which nothing more can be saved
    this.failed = null; // error of a stroke that waits to be sent again, and the later ones with it
    this.resend = () => {};
  }

  paint(axis, index, voxels) {
    const stroke = async (after) => {
      const params = new URLSearchParams({ axis, index, after });
      const body = await gzip(voxels);
      return (await send("PUT", `api/slice?${params}`, {}, body, { "Content-Encoding": "gzip" })).json();
    };
    return this.add(stroke, true);
  }

  async post(path, params = {}) {
    this.check();
    return this.add((after) => json("POST", path, { ...params, after }));
  }

  check() {
    if (this.broken) throw this.broken;
    if (this.failed) throw new Error(`strokes are not saved yet (${this.failed.message}). Press Send again, above.`);
  }

  // Returns when all changes are saved
  async settled() {
    while (this.waiting && !this.failed && !this.broken) await pause(SOON);
    this.check();
  }

  // Returns a promise of the answer, once all changes before it are saved; a stroke that is refused is kept
  add(change, isStroke = false) {
    this.waiting += 1;
    if (!this.failed && !this.broken) this.onState("saving");
    const result = this.last.then(() => this.untilSaved(change, isStroke));
    this.last = result.catch(() => {});
    return result;
  }

  async untilSent(error) {
    this.failed = error;
    this.onState(error);
    await new Promise((resolve) => { this.resend = resolve; });
    this.failed = null;
    this.onState("saving");
  }

  async untilSaved(change, isStroke) {
    try {
      for (;;) {
        if (this.broken) throw this.broken;
        try {
          const answer = await change(this.sequence);
          this.sequence = answer.sequence;
          return answer;
        } catch (error) {
          if (error instanceof ServerError) {
            if (!isStroke || error.status === OUTDATED) throw error;
            await this.untilSent(error);
          } else {
            this.onState("waiting"); // the server cannot be reached
            await pause(RETRY_AFTER);
          }
        }
      }
    } catch (error) {
      if (error.status === OUTDATED) this.broken = error;
      this.onState(error);
      throw error;
    } finally {
      this.waiting -= 1;
      if (!this.waiting && !this.broken) this.onState("saved");
    }
  }
}
