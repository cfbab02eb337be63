// The frame of the page: header, navigation, what is wrong with the connection, and one page below.

import { html, render, useEffect, useRef, useState } from "./html.js";
import { place, address } from "./place.js";
import { connect, forgetKey, info, keyed, may, reason, state, useKey } from "./session.js";
import { THEMES, theme } from "./theme.js";
import { Adapters } from "./adapters/adapters.js";
import { Audit } from "./audit/audit.js";
import { Keys } from "./keys/keys.js";
import { Live } from "./live/live.js";
import { Playground } from "./playground/playground.js";

const PAGES = [
  { name: "playground", title: "Playground", view: Playground, shown: () => may("generate") },
  { name: "adapters", title: "Adapters", view: Adapters, shown: () => true },
  { name: "live", title: "Live", view: Live, shown: () => true },
  { name: "keys", title: "Keys", view: Keys, shown: () => keyed.value && may("admin") },
  { name: "audit", title: "Audit", view: Audit, shown: () => may("admin") },
];

function Header() {
  const about = info.value;
  return html`
    <header class="top">
      <a class="brand" href=${address("playground")}>
        <img src="ui/icon.svg" alt="" width="28" height="28" />
        <span>Lorry</span>
      </a>
      ${about && html`<${Navigation} />`}
      <div class="top-end">
        ${about && html`<span class="base" title="The base model">${about.model_id} · ${about.quantization}</span>`}
        <${ThemeChoice} />
        ${keyed.value && html`<button class="quiet" onClick=${forgetKey}>Sign out</button>`}
      </div>
    </header>
  `;
}

function Navigation() {
  const here = current().name;
  return html`
    <nav aria-label="Pages">
      ${PAGES.filter((page) => page.shown()).map(
        (page) => html`
          <a href=${address(page.name)} aria-current=${page.name === here ? "page" : undefined}>
            ${page.title}
          </a>
        `,
      )}
    </nav>
  `;
}

function ThemeChoice() {
  return html`
    <label class="theme">
      <span class="unseen">Colours</span>
      <select value=${theme.value} onChange=${(event) => (theme.value = event.target.value)}>
        ${THEMES.map((name) => html`<option value=${name}>${name}</option>`)}
      </select>
    </label>
  `;
}

function Trouble() {
  const said = {
    away: "The server does not answer. This page tries again every two seconds.",
    "not ready": `The server is not ready. ${reason.value}`,
  }[state.value];
  return html`<div class="trouble" role="status">${said && html`<p>${said}</p>`}</div>`;
}

function KeyPrompt() {
  const [text, setText] = useState("");
  const [remember, setRemember] = useState(false);
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    useKey(text.trim(), remember);
  };
  return html`
    <main class="key" id="main">
      <form onSubmit=${submit}>
        <h1>This server asks for a key</h1>
        <p>Its operator has one for you. It stays in this browser and goes to this server only.</p>
        <label for="key">Key</label>
        <input
          id="key"
          ref=${field}
          type="password"
          autocomplete="off"
          required
          value=${text}
          aria-describedby="key-problem"
          onInput=${(event) => setText(event.target.value)}
        />
        <p id="key-problem" class="problem" role="alert">${reason.value}</p>
        <label class="check">
          <input type="checkbox" checked=${remember} onChange=${(event) => setRemember(event.target.checked)} />
          Remember it in this browser
        </label>
        <button class="main" type="submit">Continue</button>
      </form>
    </main>
  `;
}

function current() {
  const shown = PAGES.filter((page) => page.shown());
  return shown.find((page) => page.name === place.value.page) ?? shown[0];
}

function Main() {
  if (state.value === "key") return html`<${KeyPrompt} />`;
  if (!info.value) return html`<main id="main"></main>`;
  const page = current();
  document.title = `${page.title} · ${info.value.model_id} · Lorry`;
  return html`<main id="main" tabindex="-1" key=${page.name}><${page.view} /></main>`;
}

function App() {
  useEffect(() => void connect(), []);
  const skip = (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Header} />
    <${Trouble} />
    <${Main} />
  `;
}

render(html`<${App} />`, document.getElementById("app"));
