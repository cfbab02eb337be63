// The request that a column makes: its path and its body, as the page sends it and as it is copied.

import { info } from "../session.js";
import { colours, mode, prompt, schema, settings, system } from "./comparison.js";

const NEUTRAL = { top_p: 1, top_k: 0, repetition_penalty: 1 };
const ALTERNATIVES = 5;

/** Returns the spec of an adapter or a sum; null is the base. */
export function spec(parts) {
  const each = parts.map(({ name, scale }) => (scale === null ? name : { name, scale }));
  return each.length > 1 ? each : (each[0] ?? null);
}

/** Returns `{ path, body }`. `messages` are a chat's, without the system prompt. */
export function request(column, messages, seed) {
  const chat = mode.value === "chat";
  const body = { model: info.value.model_id, adapter: spec(column.parts.value) };
  if (chat) {
    const said = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    body.messages = [...said, ...messages];
  } else {
    body.prompt = prompt.value;
  }
  for (const [name, value] of Object.entries(settings.value)) {
    if (value !== NEUTRAL[name]) body[name] = value;
  }
  if (settings.value.temperature > 0) body.seed = seed;
  if (schema.value.trim()) {
    const found = JSON.parse(schema.value);
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: found } };
  }
  if (colours.value) {
    if (chat) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
    else body.logprobs = ALTERNATIVES;
  }
  return { path: chat ? "/v1/chat/completions" : "/v1/completions", body };
}
