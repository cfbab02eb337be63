// Vercel's AI SDK, with its provider for servers that speak as OpenAI.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const BASE = "smollm2-135m";
const ADAPTER = "pirate";
const lorry = createOpenAICompatible({
  name: "lorry",
  baseURL: `${process.env.LORRY_URL}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const prompt = "How do I cook rice?";
const given = { model: lorry(BASE), prompt, temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
const dish = z.strictObject({ name: z.enum(["rice", "soup"]), minutes: z.int().min(1).max(99) });

test("chat", async () => {
  const { text, usage } = await generateText(given);
  assert(text);
  assert(usage.outputTokens > 0 && usage.outputTokens <= 12);
});

test("stream", async () => {
  const stream = streamText(given);
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, (await generateText(given)).text);
  assert((await stream.usage).outputTokens > 0);
});

test("tools", async () => {
  const forecast = tool({
    description: "Weather",
    inputSchema: z.strictObject({ city: z.enum(["Rome", "Oslo"]) }),
    execute: async ({ city }) => `rain in ${city}`,
  });
  const more = { tools: { forecast }, toolChoice: "required", maxOutputTokens: 200 };
  const { toolCalls, toolResults } = await generateText({ ...given, ...more });
  assert.equal(toolCalls[0].toolName, "forecast");
  assert.equal(toolResults[0].output, `rain in ${toolCalls[0].input.city}`);
});

test("schema", async () => {
  const more = { maxOutputTokens: 200 };
  const { object } = await generateObject({ ...given, ...more, schema: dish });
  assert(dish.safeParse(object).success);
  const answer = await generateText({ ...given, ...more, output: Output.object({ schema: dish }) });
  assert(dish.safeParse(answer.output).success);
});

test("adapter", async () => {
  const pirate = (await generateText({ ...given, model: lorry(ADAPTER) })).text;
  assert.notEqual(pirate, (await generateText(given)).text);
  const providerOptions = { lorry: { adapter: [{ name: ADAPTER }] } };
  assert.equal((await generateText({ ...given, providerOptions })).text, pirate);
});

test("completion", async () => {
  const { text } = await generateText({ ...given, model: lorry.completionModel(BASE) });
  assert(text);
});

test("embeddings", async () => {
  const model = lorry.textEmbeddingModel(BASE);
  const { embeddings } = await embedMany({ model, values: ["rice", "tea"] });
  assert(embeddings.length === 2 && embeddings[0].length === embeddings[1].length);
});

test("errors", async () => {
  const asked = generateText({ ...given, model: lorry("nobody") });
  await assert.rejects(asked, (error) => APICallError.isInstance(error) && error.statusCode === 404);
});
