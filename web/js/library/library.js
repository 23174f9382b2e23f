// What the server knows of the LoRA files: names at once, their headers as fast as it reads them.

import { api } from "../../../../scripts/api.js"

let known = []
let version = "" // of the list, as the server calls it
let asking = null
const listeners = new Set()

export function loras() {
  return known
}

/** The file that a row's name means, as the server resolves it; undefined when there is none or it is not known yet. */
export function find(name) {
  const wanted = bare(name)
  const same = known.filter((lora) => bare(lora.name) === wanted)
  if (same.length) return same[0]
  const named = wanted.includes("/") ? [] : known.filter((lora) => bare(lora.name).split("/").pop() === wanted)
  return named.length === 1 ? named[0] : undefined
}

/** Calls `listener` whenever more is known, until the returned function is called. */
export function listen(listener) {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

/** Asks the server what is new; again and again while it has unread files. */
export function refresh() {
  asking ??= ask().finally(() => (asking = null))
  return asking
}

export function pictureUrl(lora) {
  const query = `name=${encodeURIComponent(lora.name)}&version=${encodeURIComponent(lora.version ?? "")}`
  return api.apiURL(`/lora_loom/picture?${query}`)
}

async function ask() {
  for (let unread = 1; unread > 0; ) {
    const since = version && `?since=${encodeURIComponent(version)}`
    const answer = await api.fetchApi(`/lora_loom/loras${since}`).catch(() => null)
    if (!answer?.ok) return // asked again another time
    const found = await answer.json()
    const changed = take(found)
    unread = found.unread
    if (changed) for (const listener of listeners) listener()
  }
}

/** Makes an answer part of what is known; false when it changes nothing. One that is not `since` a version is all. */
function take({ version: now, since, loras, gone }) {
  const same = since && !loras.length && !gone.length
  version = now
  if (same) return false
  const all = new Map(since ? known.map((lora) => [lora.name, lora]) : [])
  for (const name of gone) all.delete(name)
  for (const lora of loras) all.set(lora.name, lora)
  known = [...all.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
  return true
}

/** A name as it is compared: folders with slashes, no suffix. */
export function bare(name) {
  return name.trim().replaceAll("\\", "/").replace(/\.(safetensors|ckpt|pth|pt|bin|sft)$/, "")
}
