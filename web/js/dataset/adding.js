// Pictures that are dropped or chosen, with the captions beside them, on their way into a folder below input.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { captions, folders, pictures, place, Refusal, upload } from "./server.js"
import * as counted from "./words.js"

const MOST = 5000 // files of one drop
const DEEPEST = 3

/**
 * What was dropped: `{ files: [{ file, folder }], name }`, the name of the one folder among it. To be called in the
 * event: later the browser has forgotten it.
 */
export function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file")
  return gather(items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean))
}

/** Lets the person choose files; an empty list when they do not. */
export function choose() {
  const field = element("input", { type: "file", multiple: true, accept: "image/*,.txt,.caption" })
  const chosen = () => ({ files: [...field.files].map((file) => ({ file, folder: "" })), name: "" })
  return new Promise((resolve) => {
    field.addEventListener("change", () => resolve(chosen()))
    field.addEventListener("cancel", () => resolve(chosen()))
    field.click()
  })
}

/** Whether a drag carries files, and not a node or a text. */
export function carriesFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files")
}

/** Calls `take` with what will have been dropped on an element, which shows while files are above it that it takes them. */
export function takeDrops(target, take) {
  const shows = (on) => target.classList.toggle("loom-set-over", on)
  target.addEventListener("dragleave", () => shows(false))
  for (const kind of ["dragover", "drop"]) {
    target.addEventListener(kind, (event) => {
      if (kind === "dragover" && !carriesFiles(event)) return
      event.preventDefault()
      event.stopPropagation()
      shows(kind === "dragover")
      if (kind === "drop" && carriesFiles(event)) take(dropped(event.dataTransfer))
    })
  }
}

/**
 * Puts pictures and their captions into the folder of a node, or a new one. `tell` is called with words as it goes on.
 * The folder, and in words what became of them. Raises Refusal.
 */
export async function add({ files, name }, asked, tell) {
  const { suffixes } = await folders()
  const isPicture = ({ file }) => suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix))
  const found = files.filter(isPicture)
  if (!found.length) throw new Refusal(word("there is no picture among the files; choose {kinds} files", { kinds: suffixes.slice(0, 4).join(", ") }))
  const { subfolder } = await place(asked.folder, name)
  const names = new Map()
  for (const [at, each] of found.entries()) {
    tell(word("Adding {at} of {total}", { at: at + 1, total: found.length }))
    names.set(stem(each), inFolder(each, await upload(each.file, inFolder(each, subfolder, true))))
  }
  const folder = asked.folder.trim() || subfolder
  const notes = await describe(files, names, { ...asked, folder })
  const words = word("Added {n} of {total} files", { n: found.length, total: files.length })
  return { folder, words: [words, ...notes].join(". ") }
}

/** Writes the captions that came with pictures, where there is none yet. */
async function describe(files, names, asked) {
  const texts = files.filter(({ file }) => /\.(txt|caption)$/i.test(file.name))
  const edits = []
  const notes = []
  for (const each of texts) {
    const name = names.get(stem(each)) ?? names.get(stem(each).replace(/\.[^./]+$/, ""))
    const text = name && (await decoded(each.file))
    if (name && text === undefined) notes.push(word("{name} is not UTF-8 and was left out", { name: each.file.name }))
    else if (name && text.trim()) edits.push({ name, text })
  }
  if (!edits.length) return notes
  const there = new Map((await pictures(asked)).pictures.map((picture) => [picture.name, picture]))
  const bare = edits.filter(({ name }) => there.get(name)?.caption === "")
  if (!bare.length) return notes
  const { captions: written, refused } = await captions(asked, bare.map((edit) => ({ ...edit, was: there.get(edit.name).was })))
  return [counted.captions(written.length), ...notes, ...refused.map(([, why]) => why)]
}

async function decoded(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer())
  } catch {
    return undefined
  }
}

function stem({ file, folder }) {
  return `${folder}/${file.name.replace(/\.[^.]+$/, "")}`
}

/** Behind the name of the set that a file came in. */
function inFolder({ folder }, name, below = false) {
  if (!folder) return name
  return below ? `${name}/${folder}` : `${folder}/${name}`
}

/** The files in what was dropped; of one folder what is in it, under the folder's name. */
async function gather(entries) {
  const files = []
  const folders = entries.filter((entry) => entry.isDirectory)
  for (const entry of entries) {
    if (entry instanceof File) files.push({ file: entry, folder: "" })
    else await walk(entry, folders.length === 1 && entry.isDirectory ? undefined : "", files, 0)
  }
  return { files, name: folders.length === 1 ? folders[0].name : "" }
}

/** `folder` is undefined for the one whose name becomes that of the whole. */
async function walk(entry, folder, files, depth) {
  if (files.length >= MOST || depth > DEEPEST || entry.name.startsWith(".")) return
  if (entry.isFile) {
    files.push({ file: await new Promise((take, fail) => entry.file(take, fail)), folder: folder ?? "" })
    return
  }
  const inside = folder === undefined ? "" : folder ? `${folder}/${entry.name}` : entry.name
  const reader = entry.createReader()
  for (let part; (part = await new Promise((take, fail) => reader.readEntries(take, fail))).length; ) {
    for (const each of part) await walk(each, inside, files, depth + 1)
  }
}
