"use strict";
// Requests to the API that this page came from: sent, read as a stream, and written as code to copy.
const api = (() => {
  const KEY = "tinkersmith-key"; // of sessionStorage: this tab only
  const address = (path) => new URL(path, location.origin + location.pathname).href;
  let key = "";
  try { key = sessionStorage.getItem(KEY) || ""; } catch { /* storage is switched off: the key stays in memory */ }
  const setKey = (value) => {
    key = value;
    try { sessionStorage.setItem(KEY, value); } catch { /* as above */ }
  };
  const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

  class ApiError extends Error {
    constructor(sentence, status = 0, param = "") {
      super(sentence);
      this.status = status;
      this.param = param || "";
    }
  }
  const errorOf = async (answer) => {
    let body = null;
    try { body = await answer.json(); } catch { /* not the API's form: said below */ }
    const error = body && body.error;
    if (error && typeof error.message === "string") return new ApiError(error.message, answer.status, error.param);
    return new ApiError(`${word("broken")} (HTTP ${answer.status})`, answer.status);
  };
  const call = async (path, options) => {
    let answer;
    try {
      answer = await fetch(address(path), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (key && /[^\x20-\x7e]/.test(key)) throw new ApiError(word("badKey"), 401);
      throw new ApiError(word("unreachable"));
    }
    if (!answer.ok) throw await errorOf(answer);
    return answer;
  };

  const models = async () => {
    const answer = await call("v1/models", { headers: headers() });
    let body = null;
    try { body = await answer.json(); } catch { /* said below */ }
    if (!body || !Array.isArray(body.data)) throw new ApiError(word("broken"));
    return body.data;
  };

  // The values of a stream's events, as they come.
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", ended = false;
    while (!ended) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(word("brokeOff"));
      }
      if (piece.done) break;
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const text = line.slice(5).trim();
        if (text === "[DONE]") { ended = true; break; }
        let value;
        try { value = JSON.parse(text); } catch { throw new ApiError(word("broken")); }
        if (!value || typeof value !== "object") throw new ApiError(word("broken"));
        if (value.error) throw new ApiError(String(value.error.message), 0, value.error.param);
        yield value;
      }
    }
    if (!ended) throw new ApiError(word("brokeOff"));
  }
  async function* chat(body, signal) {
    const answer = await call("v1/chat/completions", {
      method: "POST", signal, body: JSON.stringify(body), headers: { ...headers(), "content-type": "application/json" },
    });
    yield* events(answer);
  }

  // ---- the request as code; the key is a variable, never the key itself

  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const curl = (body) => [
    `curl -N ${quoted(address("v1/chat/completions"))}`,
    "  -H 'Content-Type: application/json'",
    ...(key ? ['  -H "Authorization: Bearer $API_KEY"'] : []),
    `  --data-raw ${quoted(JSON.stringify(body, null, 2))}`,
  ].join(" \\\n");

  const literal = (value, indent) => {
    if (value === null) return "None";
    if (value === true) return "True";
    if (value === false) return "False";
    if (typeof value !== "object") return JSON.stringify(value);
    const inner = `${indent}    `;
    const lines = Array.isArray(value)
      ? value.map((item) => literal(item, inner))
      : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`);
    const [open, close] = Array.isArray(value) ? "[]" : "{}";
    return lines.length ? `${open}\n${lines.map((line) => `${inner}${line},\n`).join("")}${indent}${close}` : open + close;
  };
  const python = (body) => [
    ...(key ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${key ? 'os.environ["API_KEY"]' : '"none"'})`,
    "answer = client.chat.completions.create(",
    ...Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    ")",
    "for chunk in answer:",
    "    for choice in chunk.choices:",
    '        print(choice.delta.content or "", end="", flush=True)',
    "print()",
  ].join("\n");

  return { models, chat, curl, python, setKey, ApiError };
})();
