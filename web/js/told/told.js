// What was told of nodes, in the run and before it when it was refused, kept with the workflow that it is about: it
// comes back after an undo and in the workflow's tab, and is nowhere else.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"
import { withoutStrengths } from "../measures/strengths.js"
import { eachNode, nodeOf } from "../page/nodes.js"
import { spoken, word } from "../page/words.js"
import { hearQueued, isLoading, onScreen, ownerOf, whenLoaded } from "./workflows.js"
import { DECIDE } from "./zeros.js"

const told = new WeakMap() // by workflow: entries by execution id
const shows = new WeakMap() // by node: what shows an entry
const looks = new Set() // what else looks after a change
let openOuter = () => {}
const CHANGES = ["input", "change", "pointerup", "keyup"]

/**
 * Calls `show` with what is told of the node: `text`; `problem`, if it is one; `chosen`, what its automatic inputs stand
 * for; `measure`, its figures, which are `stale` when other inputs than those they tell of have changed; `images`. With
 * undefined when there is nothing.
 */
export function listen(node, show) {
  shows.set(node, show)
}

/** Calls `look` a moment after whatever may have changed the workflow on screen. */
export function whenChanged(look) {
  looks.add(look)
}

/** Brings every node on screen in line with what was told of it, as when a workflow was opened. */
export function showAll() {
  whenLoaded(() => {
    eachNode(app.rootGraph, (node) => (node.subgraph ? showOutside(node) : showOn(node)))
  })
}

/**
 * Hears what the server says, and what becomes of it. `open` is called with a subgraph's node when there is something to
 * tell of the nodes in it.
 */
export function hear(open) {
  openOuter = open
  hearQueued()
  api.addEventListener("lora_loom.said", ({ detail: { prompt_id, node, text, working, chosen } }) => {
    tell(prompt_id, node, { text, chosen, prompt: working ? prompt_id : null })
  })
  api.addEventListener("executed", ({ detail: { prompt_id, node, display_node, output } }) => {
    if (output?.text) tell(prompt_id, display_node ?? node, toldBy(output))
  })
  api.addEventListener("execution_start", ({ detail }) => forget(detail.prompt_id))
  api.addEventListener("execution_error", ({ detail: { prompt_id, node_id, exception_message } }) => {
    tell(prompt_id, node_id, { text: exception_message.trim(), problem: true })
    end(prompt_id, () => "")
  })
  api.addEventListener("execution_interrupted", ({ detail }) => end(detail.prompt_id, (text) => word("stopped; last message: {text}", { text: spoken(text) })))
  api.addEventListener("execution_success", ({ detail }) => end(detail.prompt_id, () => ""))
  api.addEventListener("reconnecting", lost)
  api.addEventListener("promptQueueing", hearRefusal)
  api.addEventListener("graphChanged", soon)
  for (const kind of CHANGES) document.body.addEventListener(kind, soon, { capture: true, passive: true })
}

/** Looks, a moment after a change, whether what is shown is still about what the nodes hold. */
export function soon() {
  if (soon.due) return
  soon.due = true
  requestAnimationFrame(() => {
    soon.due = false
    if (isLoading()) return
    dropProblems(onScreen(), (entry, id) => nodeOf(id) && !isStill(entry, nodeOf(id)))
    for (const [id, entry] of entriesOf(onScreen())) if (entry.chosen || entry.measure) showOn(nodeOf(id))
    for (const look of looks) look()
  })
}

function toldBy({ text, chosen, lora_loom: measure, images }) {
  return { text: text.join("\n"), chosen: chosen?.[0], measure: measure && JSON.parse(measure[0]), images }
}

async function tell(prompt, id, entry) {
  put(await ownerOf(prompt), id, entry)
}

function put(workflow, id, entry) {
  if (!workflow) return
  entriesOf(workflow).set(String(id), entry)
  refresh(workflow, id)
}

function refresh(workflow, id) {
  if (workflow !== onScreen() || isLoading()) return
  showOn(nodeOf(id))
  for (const outer of outersOf(id)) showOutside(nodeOf(outer))
}

/** The ids of the subgraphs' nodes that a node is in. */
function outersOf(id) {
  const parts = String(id).split(":").slice(0, -1)
  return parts.map((_, index) => parts.slice(0, index + 1).join(":"))
}

/** On the node of a subgraph, what is told of the nodes in it. */
function showOutside(node) {
  const within = [...entriesOf(onScreen())].filter(([id]) => outersOf(id).some((outer) => nodeOf(outer) === node))
  if (!node || (!within.length && !shows.has(node))) return
  if (!shows.has(node)) openOuter(node)
  const text = within.map(([id, entry]) => `${nodeOf(id)?.title}: ${spoken(entry.text)}`).join("\n\n")
  shows.get(node)?.({ text, problem: within.some(([, { problem }]) => problem) })
}

/** What went wrong in an earlier run, when another one begins. */
async function forget(prompt) {
  dropProblems(await ownerOf(prompt), (entry) => !entry.refused)
}

function dropProblems(workflow, which) {
  for (const [id, entry] of entriesOf(workflow)) if (entry.problem && which(entry, id)) drop(workflow, id)
}

/** A line of progress does not stay as if the node still worked. */
async function end(prompt, words) {
  const workflow = await ownerOf(prompt)
  for (const [id, entry] of entriesOf(workflow)) {
    if (entry.prompt !== prompt) continue
    const text = words(entry.text)
    if (text) put(workflow, id, { text })
    else drop(workflow, id)
  }
}

/** The server is away; what it goes on to say, if it does, takes the place of this. */
function lost() {
  const workflow = onScreen()
  for (const [id, entry] of entriesOf(workflow)) {
    const text = word("no connection to ComfyUI; last message: {text}", { text: spoken(entry.text) })
    if (entry.prompt && !entry.lost) put(workflow, id, { ...entry, text, lost: true })
  }
}

function drop(workflow, id) {
  entriesOf(workflow).delete(id)
  refresh(workflow, id)
}

/** The front end says nothing when the server refuses a prompt; it is done with it when it has set what was wrong. */
async function hearRefusal() {
  const workflow = onScreen()
  dropProblems(workflow, () => true)
  do await new Promise((then) => setTimeout(then, 50))
  while (app.processingQueue)
  for (const [id, { errors }] of Object.entries(app.extensionManager.lastNodeErrors ?? {})) {
    const first = errors.find((error) => error.type === "custom_validation_failed")
    const text = first?.details.replace(`${first.extra_info?.input_name} - `, "").trim()
    if (text) put(workflow, id, { text, problem: true, refused: true })
  }
}

function entriesOf(workflow) {
  if (!workflow) return new Map()
  if (!told.has(workflow)) told.set(workflow, new Map())
  return told.get(workflow)
}

function showOn(node) {
  const show = shows.get(node)
  if (!show) return
  const [, entry] = [...entriesOf(onScreen())].find(([id]) => nodeOf(id) === node) ?? []
  const still = !entry || isStill(entry, node)
  show(entry && { ...entry, chosen: still ? entry.chosen : undefined, stale: !still })
}

/** Whether the node still has the inputs that an error, a choice for automatic ones, or figures are about. */
function isStill(entry, node) {
  if (!entry.problem && !entry.chosen && !entry.measure) return true
  const decides = entry.measure ? (name) => !(name in (entry.measure.live?.asked ?? {})) : (name) => DECIDE.includes(name)
  const now = given(node, entry.problem ? () => true : decides, Boolean(entry.measure?.live?.parts))
  entry.given ??= now
  return entry.given === now
}

/** What a node is run with, as text: those of its own values, and the values of all nodes before it; `loose`, without
 * the strengths of rows. */
function given(node, counts, loose = false) {
  const all = new Set()
  const visit = (each) => {
    if (!each || all.has(each)) return
    all.add(each)
    for (const { link } of each.inputs ?? []) visit(each.graph.getNodeById(each.graph.getLink(link)?.origin_id))
    if (each.graph !== app.rootGraph) eachNode(app.rootGraph, visit)
    else eachNode(each.subgraph, visit)
  }
  visit(node)
  return JSON.stringify([...all].map((each) => [
    each.id, each.mode, each.inputs?.map((input) => input.link),
    each.widgets?.filter((widget) => widget.serialize !== false && (each !== node || counts(widget.name)))
      .map(({ name, value }) => (loose && name === "rows" ? withoutStrengths(value) : value)),
  ]))
}
