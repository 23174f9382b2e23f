// What a person keeps of the picker: favourites, what was used, and how the list looks. It lies in the user's own folder
// on the server; where that cannot be read or written, it lasts as long as the page.

import { api } from "../../../../scripts/api.js"

const FILE = "lora_loom_picker.json"
const MOST_RECENT = 50
const MOST_USED = 2000 // names
const LOOKS = { view: ["list", "grid"], sort: ["name", "newest", "used", "size"] } // the first is what it begins with

const favourites = new Map() // name: whether it is one; what is not here may be one of another program's
const used = new Map() // name: how often
let recent = [] // names, the last first
const looks = { view: LOOKS.view[0], sort: LOOKS.sort[0] }
let unwritten = [] // changes: what is read meanwhile is older
let turn = Promise.resolve() // reading and writing, one after the other

/** Reads what was kept, also by another tab. */
export function load() {
  turn = turn.then(read)
  return turn
}

export function isFavourite(lora) {
  return favourites.get(lora.name) ?? Boolean(lora.favourite)
}

export function turnFavourite(lora) {
  const on = !isFavourite(lora)
  change(() => favourites.set(lora.name, on))
}

export function timesUsed(lora) {
  return used.get(lora.name) ?? 0
}

/** The place of a file among those used last, 0 for the last one; -1 for one that was not. */
export function recency() {
  const places = new Map(recent.map((name, place) => [name, place]))
  return (lora) => places.get(lora.name) ?? -1
}

export function noteUse(name) {
  change(() => {
    used.set(name, (used.get(name) ?? 0) + 1)
    recent = [name, ...recent.filter((other) => other !== name)].slice(0, MOST_RECENT)
  })
}

export function look(kind) {
  return looks[kind]
}

export function setLook(kind, value) {
  if (looks[kind] !== value) change(() => (looks[kind] = value))
}

async function read() {
  try {
    const there = await api.fetchApi("/userdata?dir=.") // to ask for a file that is not there is told as an error
    if (!there.ok || !(await there.json()).includes(FILE)) return
    const answer = await api.fetchApi(`/userdata/${FILE}`, { cache: "no-store" })
    if (answer.ok) take(await answer.json())
  } catch {
    // as if nothing was kept
  }
}

/** Takes over what has the right types, and changes it as was done since. */
function take(found) {
  refill(favourites, found?.favourites, (value) => typeof value === "boolean")
  refill(used, found?.used, (value) => Number.isSafeInteger(value) && value > 0)
  const names = Array.isArray(found?.recent) ? found.recent : []
  recent = names.filter((name) => typeof name === "string").slice(0, MOST_RECENT)
  for (const [kind, values] of Object.entries(LOOKS)) if (values.includes(found?.[kind])) looks[kind] = found[kind]
  for (const edit of unwritten) edit()
}

function refill(map, table, isSound) {
  map.clear()
  for (const [name, value] of Object.entries(table ?? {})) if (isSound(value)) map.set(name, value)
}

function change(edit) {
  edit()
  unwritten.push(edit)
  turn = turn.then(write)
}

async function write() {
  if (!unwritten.length) return
  const edits = unwritten
  unwritten = []
  const most = [...used].sort(([, a], [, b]) => b - a).slice(0, MOST_USED)
  const all = { ...looks, favourites: Object.fromEntries(favourites), recent, used: Object.fromEntries(most) }
  try {
    const body = JSON.stringify(all, null, 1)
    const answer = await api.fetchApi(`/userdata/${FILE}?overwrite=true`, { method: "POST", body })
    if (!answer.ok) unwritten.unshift(...edits)
  } catch {
    unwritten.unshift(...edits)
  }
}
