// Which run a Train LoRA shows: the one that its own prompt makes or was answered with, else the one that it is saved
// with, else the newest that the same node of the same workflow made, in another window or before this one was opened.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"
import { executionIdOf } from "../page/nodes.js"
import { valueOf } from "../page/sources.js"
import { quietly } from "../page/undo.js"
import { latestFor, latestOf, runs } from "../runs/store.js"
import { isLoading, onScreen, ownerOf } from "../told/workflows.js"

const KEPT = "lora_loom_run" // the property of a node that has its run's id
const MOST = 200
const begun = new WeakMap() // by workflow: the prompts that nodes were last run by, by execution id
const owners = new Map() // workflows by prompt, of this window
const strangers = new Map() // the workflow that was on screen when a prompt was found to be of no open one, by prompt

/** Hears which runs nodes make; `then` is called when it is known whose they are. */
export function hearRuns(then) {
  const note = async (prompt, node) => {
    if (strangers.has(prompt) && strangers.get(prompt) === onScreen()) return then()
    const owner = await ownerOf(prompt)
    if (owner) own(owner, prompt, String(node))
    else if (!isLoading()) put(strangers, prompt, onScreen())
    then()
  }
  api.addEventListener("lora_loom.run", ({ detail }) => note(detail.prompt_id, detail.node))
  api.addEventListener("executed", ({ detail: { prompt_id, node, output } }) => output?.run && note(prompt_id, node))
}

function own(owner, prompt, id) {
  put(owners, prompt, owner)
  if (!begun.has(owner)) begun.set(owner, new Map())
  if (begun.get(owner).get(id)?.prompt !== prompt) begun.get(owner).set(id, { prompt })
}

/** Remembers the last of them only. */
function put(map, key, value) {
  map.set(key, value)
  if (map.size > MOST) map.delete(map.keys().next().value)
}

/** The run that a node shows, and whether the node still asks for that one: `{run, same}`; undefined when there is none. */
export function shownBy(node) {
  const workflow = onScreen()
  const id = executionIdOf(node)
  const entry = begun.get(workflow)?.get(id)
  const mine = entry && latestFor(entry.prompt, id)
  const other = theirs(node, workflow, id)
  const run = other?.state === "running" && mine?.state !== "running" ? other : mine ?? other
  if (!run) return undefined
  if (run !== mine) return { run, same: valueOf(node, "run_name") === run.name && valueOf(node, "steps") === run.total }
  entry.values ??= values(node)
  if (run.id) keep(node, run.id)
  return { run, same: entry.values === values(node) }
}

/** The newest of what the node is saved with and what was heard of elsewhere. */
function theirs(node, workflow, id) {
  const saved = runs().find((run) => run.id && run.id === node.properties?.[KEPT])
  const latest = latestOf(workflow?.activeState?.id ?? app.rootGraph.id, id)
  const owner = owners.get(latest?.prompt_id) // another opening of the file, if any
  const heard = latest?.name === valueOf(node, "run_name") && (!owner || owner === workflow) ? latest : undefined
  return [heard, saved].filter(Boolean).sort((a, b) => (b.changed ?? Infinity) - (a.changed ?? Infinity))[0]
}

function values(node) {
  return JSON.stringify(node.widgets.filter((widget) => widget.serialize !== false).map((widget) => widget.value))
}

/** Saves the run's id with the node, which is nothing that a person did and could undo. */
function keep(node, id) {
  if (node.properties[KEPT] === id) return
  node.properties[KEPT] = id
  quietly(node, (saved) => ((saved.properties ??= {})[KEPT] = id))
}
