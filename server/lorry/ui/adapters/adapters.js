import { html } from "../html.js";

export function Adapters() {
  return html`<h1>Adapters</h1>`;
}
