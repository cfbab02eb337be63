// Where adapters are dropped, and a card for each upload.

import { html, useEffect, useRef, useState } from "../html.js";
import { address } from "../place.js";
import { Refusal } from "./action.js";
import { bytes, number } from "./figures.js";
import { adaptersOf, chosen, filesOf } from "./dropped.js";
import { byName } from "./records.js";
import { add, discard, misplaced, nameProblem, send, set, stop, uploads } from "./uploads.js";

function take(files) {
  const { adapters, problem } = adaptersOf(files);
  add(adapters, problem);
}

/** Whether files are being dragged over the page. A drop anywhere is taken. */
function useDrop() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const files = (event) => event.dataTransfer?.types.includes("Files");
    const drag = (event) => {
      if (!files(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      setOver(true);
    };
    const leave = (event) => {
      if (!event.relatedTarget) setOver(false);
    };
    const drop = async (event) => {
      if (!files(event)) return;
      event.preventDefault();
      setOver(false);
      take(await filesOf(event.dataTransfer));
    };
    const all = { dragover: drag, dragleave: leave, drop };
    for (const [name, listener] of Object.entries(all)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(all)) removeEventListener(name, listener);
    };
  }, []);
  return over;
}

export function UploadPanel() {
  const over = useDrop();
  const folder = useRef(null);
  const archive = useRef(null);
  const [sourced, setSourced] = useState(false);
  const choose = (event) => {
    take(chosen(event.target));
    event.target.value = "";
  };
  return html`
    <section class="upload" aria-label="Upload">
      <div class=${`drop ${over ? "over" : ""}`}>
        <p>
          <strong>${over ? "Let go to upload." : "Drop an adapter anywhere on this page"}</strong>
          <span class="faint"> A PEFT folder, several in one folder, or a zip, tar or tar.gz of one</span>
        </p>
        <div class="row">
          <button onClick=${() => folder.current.click()}>Choose a folder</button>
          <button onClick=${() => archive.current.click()}>Choose files</button>
          <button aria-expanded=${sourced} onClick=${() => setSourced(!sourced)}>From a source</button>
        </div>
        <input ref=${folder} type="file" hidden webkitdirectory aria-label="A folder to upload" onChange=${choose} />
        <input ref=${archive} type="file" hidden multiple aria-label="Files to upload" onChange=${choose} />
      </div>
      ${sourced && html`<${SourceForm} close=${() => setSourced(false)} />`}
      ${misplaced.value && html`<div class="refusal" role="alert"><p>${misplaced.value}</p></div>`}
      ${uploads.value.length > 1 && html`<${All} />`}
      <ul class="uploads">
        ${uploads.value.map((one) => html`<li key=${one.id} class="card"><${Upload} one=${one} /></li>`)}
      </ul>
    </section>
  `;
}

function All() {
  const waiting = uploads.value.filter((one) => one.state === "waiting" && !nameProblem(one));
  const over = uploads.value.filter((one) => ["done", "refused"].includes(one.state));
  return html`
    <div class="row">
      ${waiting.length > 1 &&
      html`<button class="main" onClick=${() => waiting.forEach(send)}>Upload all ${number(waiting.length)}</button>`}
      ${over.length > 1 && html`<button onClick=${() => over.forEach((one) => discard(one.id))}>Clear the finished</button>`}
    </div>
  `;
}

function SourceForm({ close }) {
  const [source, setSource] = useState("");
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    const text = source.trim();
    if (!text) return;
    const name = text.replace(/\.(zip|tar|tar\.gz|tgz)$/i, "").split(/[/@]/).filter(Boolean).pop() ?? "";
    add([{ name: name.replace(/[^A-Za-z0-9._-]+/g, "-"), source: text }], null);
    close();
  };
  return html`
    <form class="card row" onSubmit=${submit}>
      <label class="grow">
        Source
        <input
          ref=${field}
          type="text"
          class="wide"
          placeholder="org/name, https://host/legal.zip, s3://bucket/legal, /srv/adapters/legal"
          value=${source}
          onInput=${(event) => setSource(event.target.value)}
        />
      </label>
      <button type="submit">Go on</button>
      <p class="faint note">A hub id, an https, s3 or gs address, or a folder of the server, as its operator allows.</p>
    </form>
  `;
}

const SAID = {
  sending: "Sending",
  verifying: "The server verifies it",
  fetching: "The server fetches it",
  cancelling: "Cancelling",
  done: "Uploaded",
  refused: "Refused",
};

function Upload({ one }) {
  if (one.state === "waiting" || one.state === "refused") return html`<${Waiting} one=${one} />`;
  if (one.state === "done") {
    return html`
      <div class="row">
        <span class="badge enabled">uploaded</span>
        <span class="grow" role="status">
          <a href=${address("adapters", [one.record.name])}>${one.record.name}</a> is there as version
          ${" "}${one.record.version}.
          ${one.record.warnings.length > 0 &&
          html`<ul class="warnings">${one.record.warnings.map((text) => html`<li>${text}</li>`)}</ul>`}
        </span>
        <button class="quiet" aria-label=${`Close the message about ${one.name}`} onClick=${() => discard(one.id)}>Close</button>
      </div>
    `;
  }
  const known = one.share !== null && one.state !== "verifying";
  return html`
    <div class="row">
      <strong>${one.name}</strong>
      <progress aria-label=${`Progress of ${one.name}`} max="1" value=${known ? one.share : undefined}></progress>
      <span class="faint grow" role="status">
        ${SAID[one.state]}${known && one.state !== "verifying" ? ` · ${Math.round(one.share * 100)} %` : ""}
      </span>
      <button disabled=${one.state === "cancelling"} onClick=${() => stop(one)}>Cancel<span class="unseen"> ${one.name}</span></button>
    </div>
  `;
}

function Waiting({ one }) {
  const problem = nameProblem(one);
  const known = byName.value.get(one.name);
  const size = (one.parts ?? []).reduce((sum, [, file]) => sum + file.size, 0);
  const submit = (event) => {
    event.preventDefault();
    if (!problem) send({ ...one, name: one.name.trim() });
  };
  return html`
    <form onSubmit=${submit}>
      <div class="row">
        <label>
          Name
          <input
            type="text"
            required
            maxlength="128"
            value=${one.name}
            onInput=${(event) => set(one.id, { name: event.target.value })}
          />
        </label>
        <label class="grow">
          Description
          <input
            type="text"
            class="wide"
            value=${one.description}
            onInput=${(event) => set(one.id, { description: event.target.value })}
          />
        </label>
        <button class="main" type="submit" disabled=${Boolean(problem)}>
          ${one.state === "refused" ? "Try again" : known ? "Add version" : "Upload"}
        </button>
        <button type="button" onClick=${() => discard(one.id)}>Discard<span class="unseen"> ${one.name}</span></button>
      </div>
      <p class="faint note">
        ${one.source ?? `${one.parts.map(([, file]) => file.name).join(", ")} · ${bytes(size)}`}
        ${known && html` · <strong>${one.name} is there: this becomes its newest version</strong>, which is used from then on.`}
      </p>
      ${problem && one.name && html`<p class="problem">${problem}</p>`}
      <${Refusal} error=${one.error} />
    </form>
  `;
}
