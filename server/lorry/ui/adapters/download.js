// An adapter's files as a tar. They are fetched by the page: a link would not send the key.

import { html } from "../html.js";
import { blob } from "../server.js";
import { Refusal, useAction } from "./action.js";
import { pathOf } from "./records.js";

export function Download({ name, version, label }) {
  const { run, busy, error } = useAction();
  const save = () =>
    run(async () => {
      const query = version === undefined ? "" : `?version=${version}`;
      const url = URL.createObjectURL(await blob(`${pathOf(name)}/content${query}`));
      const link = document.createElement("a");
      link.href = url;
      link.download = `${name.replace(/[/:]/g, "-")}${version === undefined ? "" : `-${version}`}.tar`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after this
    });
  return html`
    <button disabled=${busy} onClick=${save}>
      ${busy ? "Fetching…" : "Download"}<span class="unseen"> ${label}</span>
    </button>
    <${Refusal} error=${error} />
  `;
}
