/** The server's API: requests, errors as one kind of exception, answers as they are written. */

export class ApiError extends Error {
  /** code: the server's word for it; "away" if nothing answered, "broken" if it ended too soon. */
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export class Api {
  /** Kept in memory alone. */
  key = "";

  async json(method, path, body) {
    const response = await this.#ask(method, path, body);
    try {
      return await response.json();
    } catch {
      throw new ApiError("away", "the answer of the server broke off");
    }
  }

  /** A conversation as its file. */
  async file(id) {
    return (await this.#ask("GET", `/v1/sessions/${id}/file`)).blob();
  }

  /** Go on with a conversation from its file. */
  upload(blob) {
    return this.json("POST", "/v1/sessions/file", blob);
  }

  /** Delete while the page goes away. */
  deleteLast(id) {
    fetch(`/v1/sessions/${id}`, { method: "DELETE", headers: this.#headers(), keepalive: true });
  }

  /** Whether the server is there and takes requests. */
  async alive() {
    try {
      return (await fetch("/health", { cache: "no-store" })).ok;
    } catch {
      return false;
    }
  }

  /** Say something; yields what the server tells while the answer is written. */
  async *turn(id, body, signal) {
    const response = await this.#ask("POST", `/v1/sessions/${id}/turns`, body, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) throw new ApiError("broken", "the answer broke off");
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const data = event.replace(/^data: /, "");
          if (data === "[DONE]") return;
          const told = JSON.parse(data);
          if (told.error) throw new ApiError(told.error.code, told.error.message);
          yield told;
        }
      }
    } catch (error) {
      if (error instanceof TypeError) throw new ApiError("broken", "the answer broke off");
      throw error;
    }
  }

  async #ask(method, path, body, signal) {
    const headers = this.#headers();
    const isFile = body instanceof Blob;
    if (body) headers["Content-Type"] = isFile ? "application/octet-stream" : "application/json";
    const content = body && !isFile ? JSON.stringify(body) : body;
    let response;
    try {
      response = await fetch(path, { method, headers, body: content, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("away", "the server does not answer");
    }
    if (response.ok) return response;
    throw await readError(response);
  }

  #headers() {
    // a header has no room for other characters; a key with them is wrong in any case
    const key = this.key.replace(/[^\x21-\x7e]/g, "");
    return key ? { Authorization: `Bearer ${key}` } : {};
  }
}

async function readError(response) {
  try {
    const { error } = await response.json();
    const setting = error.code === "invalid_value" && error.param !== "content";
    return new ApiError(setting ? "bad_settings" : error.code, error.message, response.status);
  } catch {
    return new ApiError(null, `${response.status} ${response.statusText}`, response.status);
  }
}
