import { html } from "../html.js";

export function Live() {
  return html`<h1>Live</h1>`;
}
