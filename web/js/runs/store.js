// What the server knows of runs: those in its folder, and how the one that goes on is now. Asked for when something may
// have changed, and never while nothing does.

import { api } from "../../../../scripts/api.js"
import { spoken, word } from "../page/words.js"

const AT = "/lora_loom/runs"

let known = []
let version = "" // of the list, as the server calls it
let asking = null
let again = false // something has changed while it was asked for
const live = new Map() // the last that was heard of each run that goes on, by prompt and node
const ended = new Map() // ids by prompt and node, of this page's time
const MOST = 200 // that are remembered of these
const listeners = new Set()

/** The runs, the newest first. One that goes on has what was heard of it last, and may have no id yet. */
export function runs() {
  const heard = [...live.values()]
  const beginning = heard.filter((run) => !run.id || !known.some(({ id }) => id === run.id))
  return [
    ...beginning.map((run) => ({ previews: [], differs: [], ...run, saved: [] })),
    ...known.map((run) => ({ ...run, ...heard.find(({ id }) => id === run.id), saved: run.saved })),
  ]
}

/** Calls `listener` whenever something is new, until the returned function is called. */
export function listen(listener) {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

/** Hears of runs from now on; called once. */
export function hear() {
  api.addEventListener("lora_loom.run", ({ detail }) => take(detail))
  api.addEventListener("executed", ({ detail: { prompt_id, node, output } }) => {
    if (output?.run?.[0]) remember({ prompt_id, node, id: output.run[0] })
  })
  api.addEventListener("reconnected", () => refresh())
  return refresh()
}

/** Asks the server what is new; again while it has folders that it had no time to read. */
export function refresh() {
  again = asking !== null
  asking ??= ask().finally(() => (asking = null))
  return asking
}

/** The run that a node made, or makes, in a prompt; undefined when none is known. */
export function latestFor(promptId, node) {
  const place = placeOf(promptId, node)
  const id = ended.get(place)
  const same = (run) => (id ? run.id === id : placeOf(run.prompt_id, run.node) === place)
  return runs().find(same)
}

/** The newest run that a node of a workflow made, whatever the prompt; undefined when none is known. */
export function latestOf(workflowId, node) {
  return runs().find((run) => run.workflow_id === workflowId && String(run.node) === String(node))
}

/** All that is known of one run. Throws an error with a sentence, as all below. */
export function details(id) {
  return call(at(id))
}

/** Its numbers from a step on, thinned. */
export function log(id, from = 0) {
  return call(`${at(id)}/log?from=${from}`)
}

/** The workflow that it was begun with; null when it has none. */
export async function workflowOf(id) {
  if (known.find((run) => run.id === id)?.workflow === false) return null
  const answer = await api.fetchApi(`${at(id)}/workflow`)
  return answer.ok ? answer.json() : null
}

/** Copies the LoRA of a step into the loras folder, or without a step the one that came out; the name it has there. */
export async function use(id, step) {
  return (await call(`${at(id)}/use`, { step: step ?? null })).name
}

/** Deletes the folder of a run that does not go on. */
export async function remove(id) {
  await call(`${at(id)}/delete`, {})
  await refresh()
}

/** Ends a run that goes on, which is kept; of one that has no id yet, the prompt. Gives something when it did. */
export function pause(id, promptId) {
  return id ? call(`${at(id)}/pause`, {}) : api.interrupt(promptId).then(() => true)
}

/** Picture `n` of a step, in the order of the details' `pictures`, at most `side` pixels wide and high. */
export function previewUrl(id, step, n, side = 256) {
  return api.apiURL(`${at(id)}/preview/${step}/${n}?side=${side}`)
}

export function chartsUrl(id) {
  return api.apiURL(`${at(id)}/charts`)
}

function take(heard) {
  const place = placeOf(heard.prompt_id, heard.node)
  const before = live.get(place)
  live.set(place, asListed(heard)) // one that has ended, until it is asked for
  if (heard.id) remember(heard)
  const begins = heard.id !== before?.id
  const keeps = heard.saved !== before?.saved || heard.previewed !== before?.previewed
  if (heard.state !== "running" || begins || keeps) refresh()
  tell()
}

/** How a run that was heard of stands in the list. */
function asListed(heard) {
  return heard.state === "failed" ? { ...heard, state: "stopped", problem: heard.phase } : heard
}

/** Which run a node made in a prompt: of one that the server had made before, too. */
function remember({ prompt_id, node, id }) {
  const place = placeOf(prompt_id, node)
  ended.delete(place)
  ended.set(place, id)
  if (ended.size > MOST) ended.delete(ended.keys().next().value)
}

async function ask() {
  do {
    again = false
    const answer = await api.fetchApi(`${AT}?since=${encodeURIComponent(version)}`).catch(() => null)
    if (!answer?.ok) return // asked again when the server is back
    const found = await answer.json()
    if (found.runs) known = found.runs
    version = found.version
    live.clear()
    for (const run of found.live) live.set(placeOf(run.prompt_id, run.node), run)
    again ||= found.unread > 0
    tell()
  } while (again)
}

function tell() {
  for (const listener of listeners) listener()
}

async function call(path, body) {
  const how = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }
  const answer = await api.fetchApi(path, how)
  const told = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(spoken(told.error) ?? word("the server answers {status}", { status: answer.status }))
  return told
}

function at(id) {
  return `${AT}/${encodeURIComponent(id)}`
}

function placeOf(promptId, node) {
  return `${promptId} ${node}`
}
