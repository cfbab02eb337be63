// The playground: one prompt or chat, answered by up to four columns beside each other.

import { html, useEffect, useSignalEffect } from "../html.js";
import { address, go, place } from "../place.js";
import { returned } from "../session.js";
import { adapters, refresh } from "./choices.js";
import { Column } from "./column.js";
import {
  MOST_COLUMNS, colours, columns, differences, encoded, mistake, mode, newColumn, prompt, restore, seed, system, turns,
} from "./comparison.js";
import { clear, drawn, ready, regenerate, run, running, stop } from "./run.js";
import { Settings, showSchema } from "./settings.js";

const SETTLED = 200; // ms without a change before the address is written: browsers limit how often

export function Playground() {
  useAddress();
  useSignalEffect(() => {
    returned.value;
    refresh();
  });
  useKeys();
  return html`
    <div class="playground">
      <h1 class="unseen">Playground</h1>
      <${Composer} />
      <div class="columns" data-count=${columns.value.length}>
        ${columns.value.map((column, at) => html`<${Column} column=${column} at=${at} key=${column.id} />`)}
      </div>
    </div>
  `;
}

let fresh = true; // Nobody has chosen columns yet.
let written = null; // The state that this page put into the address.

/** The address has the state, and an address that is opened is the state. */
function useAddress() {
  useSignalEffect(() => {
    const found = place.value.page === "playground" ? place.value.query.get("s") : null;
    if (!found || found === written) return;
    written = found;
    stop();
    if (restore(found)) fresh = false;
  });
  useSignalEffect(() => {
    if (fresh && adapters.value) {
      fresh = false;
      const [one] = adapters.value;
      if (one) columns.value = [...columns.value, newColumn([{ name: one.name, scale: null }])];
    }
  });
  useEffect(() => {
    let timer = null;
    const write = () => {
      if (fresh) return;
      written = encoded.value;
      go(address("playground", [], { s: written }), { replace: true });
    };
    const leave = encoded.subscribe(() => {
      clearTimeout(timer);
      timer = setTimeout(write, SETTLED);
    });
    return () => {
      clearTimeout(timer);
      leave();
    };
  }, []);
}

function start() {
  if (mistake.value) showSchema();
  else if (ready.value) run();
}

function useKeys() {
  useEffect(() => {
    const press = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
      else if (event.key === "Escape" && !event.defaultPrevented && running.value) stop();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

function choose(name) {
  if (name === mode.value) return;
  stop();
  mode.value = name;
  for (const { answers } of columns.value) answers.value = [];
}

function Composer() {
  const chat = mode.value === "chat";
  const answered = columns.value.some(({ answers }) => answers.value.length);
  return html`
    <form
      class="composer card"
      novalidate
      onSubmit=${(event) => {
        event.preventDefault();
        start();
      }}
    >
      <div class="row bar">
        <div class="segments" role="group" aria-label="What is sent">
          <button type="button" aria-pressed=${String(chat)} onClick=${() => choose("chat")}>Chat</button>
          <button type="button" aria-pressed=${String(!chat)} onClick=${() => choose("prompt")}>Prompt</button>
        </div>
        <label class="check">
          <input type="checkbox" checked=${colours.value} onChange=${(event) => (colours.value = event.target.checked)} />
          Probabilities
        </label>
        <label class="check">
          <input type="checkbox" checked=${differences.value} onChange=${(event) => (differences.value = event.target.checked)} />
          Differences
        </label>
        ${columns.value.length < MOST_COLUMNS &&
        html`<button type="button" class="add-column" onClick=${() => (columns.value = [...columns.value, newColumn()])}>+ Column</button>`}
      </div>
      ${colours.value && html`<${Legend} />`}
      ${chat &&
      html`<label class="system">
        <span>System prompt</span>
        <textarea rows="1" placeholder="None" value=${system.value} onInput=${(event) => (system.value = event.target.value)}></textarea>
      </label>`}
      <label class="prompt">
        <span>${chat ? (turns.value.length ? "Next message" : "Message") : "Prompt"}</span>
        <textarea
          rows=${chat ? 2 : 5}
          value=${prompt.value}
          placeholder=${chat ? "Goes to all columns" : "The text that the answers continue"}
          onInput=${(event) => (prompt.value = event.target.value)}
        ></textarea>
      </label>
      <${Settings} />
      <div class="row actions">
        <button class="main" type="submit" disabled=${running.value || !ready.value} aria-keyshortcuts="Control+Enter">
          Run <kbd>Ctrl ↵</kbd>
        </button>
        <button type="button" disabled=${!running.value} onClick=${stop} aria-keyshortcuts="Escape">Stop</button>
        <button type="button" disabled=${running.value || !answered} onClick=${() => regenerate()}>Regenerate</button>
        ${chat &&
        html`<button type="button" class="quiet" disabled=${!turns.value.length} onClick=${clear}>New conversation</button>`}
        ${drawn.value !== null && html`<${Drawn} />`}
        <${Status} />
      </div>
    </form>
  `;
}

function Drawn() {
  if (seed.value === String(drawn.value)) return null;
  return html`
    <span class="faint">
      Seed ${drawn.value}
      <button type="button" class="quiet small" onClick=${() => (seed.value = String(drawn.value))}>Keep it</button>
    </span>
  `;
}

/** Says when answers begin and end, not each token. */
function Status() {
  const last = columns.value.map(({ answers }) => answers.value.at(-1)).filter(Boolean);
  const count = (state) => last.filter((answer) => answer.state.value === state).length;
  let said = "";
  if (running.value) {
    said = `Answering in ${columns.value.filter(({ stop }) => stop.value).length} of ${columns.value.length} columns.`;
  } else if (last.length) {
    const parts = [["done", "complete"], ["stopped", "stopped"], ["failed", "failed"]];
    said = parts.filter(([state]) => count(state)).map(([state, word]) => `${count(state)} ${word}`).join(", ");
    said = said && `Answers: ${said}.`;
  }
  return html`<span class="status faint" role="status">${said}</span>`;
}

function Legend() {
  const levels = ["90 % or more", "50 %", "20 %", "5 %", "1 %", "less"];
  return html`
    <p class="legend faint">
      A token's probability:
      ${levels.map((text, at) => html`<span class=${`token level-${at}`}>${text}</span>`)}
      <span>Point at a token, or go to it with Tab and the arrow keys, to see its alternatives.</span>
    </p>
  `;
}
