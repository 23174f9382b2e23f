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
let saving = Promise.resolve()

/** Reads what was kept, also by another tab. */
export async function load() {
  await saving
  try {
    const there = await api.fetchApi("/userdata?dir=.") // to ask for a file that is not there is told as an error
    if (!there.ok || !(await there.json()).includes(FILE)) return
    const answer = await api.fetchApi(`/userdata/${FILE}`, { cache: "no-store" })
    if (answer.ok) take(await answer.json())
  } catch {
    // as if nothing was kept
  }
}

export function isFavourite(lora) {
  return favourites.get(lora.name) ?? Boolean(lora.favourite)
}

export function turnFavourite(lora) {
  favourites.set(lora.name, !isFavourite(lora))
  save()
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
  used.set(name, (used.get(name) ?? 0) + 1)
  recent = [name, ...recent.filter((other) => other !== name)].slice(0, MOST_RECENT)
  save()
}

export function look(kind) {
  return looks[kind]
}

export function setLook(kind, value) {
  if (looks[kind] === value) return
  looks[kind] = value
  save()
}

/** Takes over what has the right types. */
function take(found) {
  refill(favourites, found?.favourites, (value) => typeof value === "boolean")
  refill(used, found?.used, (value) => Number.isSafeInteger(value) && value > 0)
  const names = Array.isArray(found?.recent) ? found.recent : []
  recent = names.filter((name) => typeof name === "string").slice(0, MOST_RECENT)
  for (const [kind, values] of Object.entries(LOOKS)) if (values.includes(found?.[kind])) looks[kind] = found[kind]
}

function refill(map, table, isSound) {
  map.clear()
  for (const [name, value] of Object.entries(table ?? {})) if (isSound(value)) map.set(name, value)
}

function save() {
  const most = [...used].sort(([, a], [, b]) => b - a).slice(0, MOST_USED)
  const body = JSON.stringify(
    { ...looks, favourites: Object.fromEntries(favourites), recent, used: Object.fromEntries(most) }, null, 1,
  )
  const write = () => api.fetchApi(`/userdata/${FILE}?overwrite=true`, { method: "POST", body })
  saving = saving.then(write).catch(() => {})
}
