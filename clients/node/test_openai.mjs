// OpenAI's SDK for JavaScript.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const BASE = "smollm2-135m";
const ADAPTER = "pirate";
const client = new OpenAI({ baseURL: `${process.env.LORRY_URL}/v1`, apiKey: "none" });
const messages = [{ role: "user", content: "How do I cook rice?" }];
const given = { model: BASE, messages, temperature: 0, max_tokens: 12 };
const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] }, days: { enum: [1, 2] } },
  required: ["city", "days"],
};
const forecast = { name: "forecast", description: "Weather", parameters };

async function said(more = {}) {
  const answer = await client.chat.completions.create({ ...given, ...more });
  return answer.choices[0].message.content;
}

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert(ids.includes(BASE) && ids.includes(ADAPTER));
});

test("chat", async () => {
  const answer = await client.chat.completions.create(given);
  assert(answer.choices[0].message.content);
  assert(answer.usage.completion_tokens <= 12);
});

test("stream", async () => {
  const whole = await said();
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...given, stream: true }))
    text += chunk.choices[0]?.delta.content ?? "";
  assert.equal(text, whole);
  const helper = client.chat.completions.stream(given);
  assert.equal(await helper.finalContent(), whole);
});

test("tools", async () => {
  const tools = [{ type: "function", function: forecast }];
  const more = { tools, tool_choice: "required", max_tokens: 200 };
  const answer = await client.chat.completions.create({ ...given, ...more });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "forecast");
  assert(["Rome", "Oslo"].includes(JSON.parse(call.function.arguments).city));
});

test("tools_run_by_the_helper", async () => {
  const asked = [];
  const run = ({ city }) => (asked.push(city), "rain");
  const tools = [{ type: "function", function: { ...forecast, function: run, parse: JSON.parse } }];
  // A tool that is asked for by name is run once, and the helper ends with its result.
  const tool_choice = { type: "function", function: { name: "forecast" } };
  const runner = client.chat.completions.runTools({ ...given, max_tokens: 200, tools, tool_choice });
  await runner.done();
  assert(["Rome", "Oslo"].includes(asked[0]));
});

test("schema", async () => {
  const dish = z.strictObject({ name: z.enum(["rice", "soup"]), minutes: z.int().min(1).max(99) });
  const response_format = zodResponseFormat(dish, "dish");
  const answer = await client.chat.completions.parse({ ...given, max_tokens: 200, response_format });
  assert(["rice", "soup"].includes(answer.choices[0].message.parsed.name));
});

test("adapter", async () => {
  const pirate = await said({ model: ADAPTER });
  assert.notEqual(pirate, await said());
  assert.equal(await said({ adapter: [{ name: ADAPTER }] }), pirate);
  const routed = client.withOptions({ defaultHeaders: { "x-lorry-adapter": ADAPTER } });
  const answer = await routed.chat.completions.create({ ...given, model: ADAPTER });
  assert.equal(answer.choices[0].message.content, pirate);
  await assert.rejects(routed.chat.completions.create(given), OpenAI.BadRequestError);
});

test("completion", async () => {
  const asked = { model: BASE, prompt: "Rice is", temperature: 0, max_tokens: 8 };
  const whole = (await client.completions.create(asked)).choices[0].text;
  let text = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true }))
    text += chunk.choices[0].text;
  assert.equal(text, whole);
});

test("embeddings", async () => {
  const { data } = await client.embeddings.create({ model: BASE, input: ["rice", "tea"] });
  const length = data[0].embedding.reduce((sum, x) => sum + x * x, 0);
  assert(data.length === 2 && Math.abs(length - 1) < 1e-3);
});

test("errors", async () => {
  await assert.rejects(said({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(said({ temperature: -1 }), OpenAI.BadRequestError);
});

test("responses", async () => {
  const asked = { model: BASE, input: "How do I cook rice?", temperature: 0, max_output_tokens: 12 };
  const first = await client.responses.create(asked);
  assert(first.output_text);
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true }))
    if (event.type === "response.output_text.delta") text += event.delta;
  assert.equal(text, first.output_text);
});
