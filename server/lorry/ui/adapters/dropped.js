// Files that were dropped or chosen, as adapters: archives, and folders with the files of each.

// What the server reads of a PEFT folder. Anything else there (checkpoints of the optimizer) is not sent.
const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const HUB = "adapter.safetensors"; // AdapterHub's name for them
const READ = [
  CONFIG,
  WEIGHTS,
  HUB,
  "adapter_words.json",
  "chat_template.jinja",
  "tokenizer_config.json",
  "tokenizer.json",
  "added_tokens.json",
  "generation_config.json",
  "config.json",
];
const ARCHIVE = /\.(zip|tar|tar\.gz|tgz)$/i;
const MOST_ENTRIES = 5000;

/** Returns `{ path, file }` of everything in a drop, folders walked. */
export async function filesOf(transfer) {
  // The entries must be taken at once: the list is empty after the first wait.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return found;
}

async function walk(entry, folder, found) {
  if (!entry || found.length >= MOST_ENTRIES) return;
  if (entry instanceof File) {
    found.push({ path: folder + entry.name, file: entry });
  } else if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: folder + entry.name, file });
  } else {
    const reader = entry.createReader();
    for (;;) {
      // It gives a hundred at a time, and none at the end.
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      for (const one of some) await walk(one, `${folder}${entry.name}/`, found);
    }
  }
}

/** Returns the same of an `<input type="file">`. */
export function chosen(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/**
 * Returns `{ adapters, problem }`. Each adapter is `{ name, parts }`, where a part is `[field, file]` of
 * the form; `name` is a proposal.
 */
export function adaptersOf(files) {
  const adapters = [];
  const folders = new Map();
  for (const { path, file } of files) {
    const at = path.lastIndexOf("/") + 1;
    const folder = path.slice(0, at);
    const own = path.slice(at);
    if (ARCHIVE.test(own)) adapters.push({ name: proposed(own.replace(ARCHIVE, "")), parts: [["file", file]] });
    else if (READ.includes(own)) folders.set(folder, [...(folders.get(folder) ?? []), [own, file]]);
  }
  for (const [folder, parts] of folders) {
    const names = parts.map(([own]) => (own === HUB ? WEIGHTS : own));
    // A folder without either is one that only contains such folders, or a tokenizer.
    if (!names.includes(CONFIG) && !names.includes(WEIGHTS)) continue;
    adapters.push({
      name: proposed(nameOf(folder)),
      parts: parts.map(([own, file]) => [own === HUB ? WEIGHTS : own, file]),
    });
  }
  const problem = adapters.length
    ? null
    : `There is no adapter here: neither an archive (zip, tar, tar.gz) nor a folder with ${CONFIG} and ${WEIGHTS}.`;
  return { adapters, problem };
}

/** A trainer's `legal/checkpoint-500/` is called after what was trained. */
function nameOf(folder) {
  const parts = folder.split("/").filter(Boolean);
  const last = parts.pop() ?? "adapter";
  return /^(checkpoint-\d+|adapter|final|output)$/i.test(last) && parts.length ? parts.pop() : last;
}

/** Returns a name that the server takes. */
function proposed(text) {
  return text.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 128) || "adapter";
}
