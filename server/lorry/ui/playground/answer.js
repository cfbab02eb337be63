// One answer while it is written: its text, its tokens, its figures and how it ended.

import { computed, signal } from "../html.js";

/** What may be read of an answer at any time. `seen` increases at most once a frame. */
export class Answer {
  text = "";
  reasoning = "";
  /** `{ text, logprob, others }` of each token, if they were asked for. */
  tokens = [];
  /** Answer's `adapters`: name, version and scale of each. */
  adapters = null;
  /** Tokens so far; milliseconds to the first and to the last of them. */
  count = 0;
  first = null;
  last = null;
  finish = null;
  problem = "";
  /** Increases when something of the above has changed. */
  seen = signal(0);
  /** "waiting", "writing", "done", "stopped" or "failed". */
  state = signal("waiting");

  /** `body` is the request, `path` where it was sent. */
  constructor(path, body) {
    this.path = path;
    this.body = body;
    this.#began = performance.now();
  }

  #began;
  #frame = 0;
  #decoder = new TextDecoder();

  /** Takes one event of the stream. */
  take(event) {
    const [choice] = event.choices ?? [];
    this.adapters = event.adapters ?? this.adapters;
    if (choice) {
      this.text += choice.text ?? choice.delta?.content ?? "";
      this.reasoning += choice.delta?.reasoning_content ?? "";
      this.finish = choice.finish_reason ?? this.finish;
      for (const token of tokensOf(choice.logprobs)) {
        const text = this.#decoder.decode(token.bytes, { stream: true });
        this.tokens.push({ ...token, text });
      }
    }
    const count = event.usage?.completion_tokens ?? this.count;
    if (count > this.count) {
      this.last = performance.now() - this.#began;
      this.first ??= this.last;
      this.early ??= count;
      this.count = count;
    }
    if (this.state.value === "waiting" && this.count) this.state.value = "writing";
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#show());
  }

  end(state, problem = "") {
    cancelAnimationFrame(this.#frame);
    this.problem = problem;
    this.#show();
    this.state.value = state;
  }

  #show() {
    this.#frame = 0;
    this.seen.value += 1;
  }

  /** Tokens a second after the first event, or null. */
  get speed() {
    const time = this.last - this.first;
    return time > 0 ? (1000 * (this.count - this.early)) / time : null;
  }

  /** Whether a chat can go on behind it. */
  get usable() {
    return this.state.value === "done" || Boolean(this.text);
  }

  ended = computed(() => ["done", "stopped", "failed"].includes(this.state.value));
}

/** Returns `{ bytes, logprob, others }` of each token, of a chat or of a completion. */
function tokensOf(found) {
  if (!found) return [];
  if (found.content) {
    return found.content.map((token) => ({
      bytes: Uint8Array.from(token.bytes ?? []),
      logprob: token.logprob,
      others: token.top_logprobs.map(({ token: text, logprob }) => ({ text, logprob })),
    }));
  }
  return (found.tokens ?? []).map((text, at) => ({
    bytes: bytesOf(text),
    logprob: found.token_logprobs[at],
    others: Object.entries(found.top_logprobs?.[at] ?? {}).map(([other, logprob]) => ({
      text: other,
      logprob,
    })),
  }));
}

/** OpenAI writes a token that is a part of a character as `bytes:\xf0\x9f`. */
function bytesOf(text) {
  const parts = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(text);
  if (!parts) return new TextEncoder().encode(text);
  return Uint8Array.from(parts[1].match(/[0-9a-f]{2}/g), (digits) => parseInt(digits, 16));
}
