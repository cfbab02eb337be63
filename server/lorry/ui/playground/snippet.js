// A request as a command or a program: curl, Python, JavaScript. The key is a variable in all of them.

import { html, useEffect, useRef, useState } from "../html.js";
import { keyed } from "../session.js";

const VARIABLE = "LORRY_API_KEY";
const LANGUAGES = { curl, Python: python, JavaScript: javascript };

function curl(url, body, withKey) {
  const key = withKey ? `  -H "authorization: Bearer $${VARIABLE}" \\\n` : "";
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${url} \\\n  -H 'content-type: application/json' \\\n${key}  -d '${quoted}'\n`;
}

function python(url, body, withKey) {
  const chat = "messages" in body;
  const headers = withKey ? `\n    headers={"authorization": f"Bearer {os.environ['${VARIABLE}']}"},` : "";
  return `${withKey ? "import os\n\n" : ""}import httpx

response = httpx.post(
    ${JSON.stringify(url)},${headers}
    json=${literal(body, 4)},
    timeout=None,
)
response.raise_for_status()
print(response.json()["choices"][0]${chat ? '["message"]["content"]' : '["text"]'})
`;
}

function javascript(url, body, withKey) {
  const chat = "messages" in body;
  const key = withKey ? `\n    authorization: \`Bearer \${process.env.${VARIABLE}}\`,` : "";
  const text = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return `const response = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: {
    "content-type": "application/json",${key}
  },
  body: JSON.stringify(${text}),
});
if (!response.ok) throw new Error(await response.text());
console.log((await response.json()).choices[0]${chat ? ".message.content" : ".text"});
`;
}

/** JSON as a literal of Python. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const lines = Array.isArray(value)
    ? value.map((one) => literal(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, indent + 4)}`);
  if (!lines.length) return open + close;
  const space = " ".repeat(indent + 4);
  return `${open}\n${lines.map((line) => `${space}${line},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** A dialog with the request `{ path, body }`. */
export function Snippet({ path, body, title, onClose }) {
  const [language, setLanguage] = useState("curl");
  const [said, setSaid] = useState("");
  const dialog = useRef(null);
  const code = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const url = new URL(path.slice(1), document.baseURI).href;
  const text = LANGUAGES[language](url, body, keyed.value);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setSaid("Copied.");
    } catch {
      // Browsers give the clipboard to pages of https and of this machine only.
      getSelection().selectAllChildren(code.current);
      setSaid("It is selected: press Ctrl+C.");
    }
  };
  const choose = (name) => {
    setLanguage(name);
    setSaid("");
  };
  return html`
    <dialog class="snippet" ref=${dialog} onClose=${onClose} aria-labelledby="snippet-title">
      <div class="row">
        <h2 id="snippet-title">${title}</h2>
        <div class="segments" role="group" aria-label="Language">
          ${Object.keys(LANGUAGES).map(
            (name) => html`<button aria-pressed=${String(name === language)} onClick=${() => choose(name)}>${name}</button>`,
          )}
        </div>
      </div>
      <pre tabindex="0" aria-label=${`The request for ${language}`}><code ref=${code}>${text}</code></pre>
      ${keyed.value && html`<p class="faint">Set ${VARIABLE} to your key first.</p>`}
      <div class="row end">
        <span role="status">${said}</span>
        <button onClick=${() => dialog.current.close()}>Close</button>
        <button class="main" onClick=${copy}>Copy</button>
      </div>
    </dialog>
  `;
}
