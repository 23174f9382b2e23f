// The model that a node is connected to: its file, found back along the links, and what the server tells of it.

import { api } from "../../../../scripts/api.js"
import { fileBehind } from "../page/sources.js"

export const UNKNOWN = { family: "", judged: false, blocks: [], presets: {} }

const CHANGES = ["change", "pointerup", "keyup"]

const answers = new Map() // promises by file
const watchers = new Set()
let hears = false

/** What is known of a node's MODEL: its `family`, whether files can be `judged` by it, its `blocks`. */
export async function modelOf(node) {
  const file = fileBehind(node)
  if (!file?.name) return UNKNOWN
  const query = `folder=${file.folder}&name=${encodeURIComponent(file.name)}`
  if (!answers.has(query)) answers.set(query, ask(query))
  return answers.get(query)
}

/** Whether a LoRA, as the library has it, is for such a model; true where that cannot be told. */
export function fits(lora, model) {
  return !model.judged || !lora?.fits?.length || lora.fits.includes(model.family)
}

/** Files may be others under the same names. */
export function forget() {
  answers.clear()
  soon()
}

/** Calls `watcher` soon after what may have changed the models of nodes, until the returned function is called. */
export function watch(watcher) {
  watchers.add(watcher)
  if (!hears) {
    api.addEventListener("graphChanged", soon)
    for (const kind of CHANGES) document.body.addEventListener(kind, soon, { capture: true, passive: true })
  }
  hears = true
  return () => watchers.delete(watcher)
}

function soon() {
  if (soon.due || !watchers.size) return
  soon.due = requestAnimationFrame(() => {
    soon.due = undefined
    for (const watcher of watchers) watcher()
  })
}

async function ask(query) {
  const answer = await api.fetchApi(`/lora_loom/family?${query}`).catch(() => null)
  if (answer?.ok) return answer.json()
  answers.delete(query)
  return UNKNOWN
}
