// The server's side: requests, and a queue of changes that are sent one after the other until each is saved.

const RETRY_AFTER = 2000; // ms

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
    this.broken = null;
  }

  paint(axis, index, voxels) {
    return this.add(async (after) => {
      const params = new URLSearchParams({ axis, index, after });
      const body = await gzip(voxels);
      return (await send("PUT", `api/slice?${params}`, {}, body, { "Content-Encoding": "gzip" })).json();
    });
  }

  post(path, params = {}) {
    return this.add((after) => json("POST", path, { ...params, after }));
  }

  // Returns a promise of the answer, once all changes before it are saved
  add(change) {
    this.waiting += 1;
    this.onState("saving");
    const result = this.last.then(() => this.untilSaved(change));
    this.last = result.catch(() => {});
    return result;
  }

  async untilSaved(change) {
    try {
      for (;;) {
        if (this.broken) throw this.broken;
        try {
          const answer = await change(this.sequence);
          this.sequence = answer.sequence;
          return answer;
        } catch (error) {
          if (error instanceof ServerError) throw error;
          this.onState("waiting"); // the server cannot be reached
          await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER));
        }
      }
    } catch (error) {
      if (error.status === 409) this.broken = error;
      this.onState(error);
      throw error;
    } finally {
      this.waiting -= 1;
      if (!this.waiting && !this.broken) this.onState("saved");
    }
  }
}
