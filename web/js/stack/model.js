// The model that a node is connected to: its file, found back along the links, and what the server tells of it.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"
import { eachNode } from "../page/nodes.js"

export const UNKNOWN = { family: "", judged: false, blocks: [], presets: {} }

const FIELDS = { // of loaders, with the folder of their files
  ckpt_name: "checkpoints", base_ckpt_name: "checkpoints", unet_name: "diffusion_models",
  model_name: "diffusion_models",
}
const FROM_OUTSIDE = -10 // where links inside a subgraph begin that come from its inputs
const MOST = 200 // nodes of a way
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

// -- the way back --------------------------------------------------------------------------------------------------

/** The {folder, name} of the file that a node's MODEL was loaded from, as far as the graph tells. */
function fileBehind(node) {
  let loader
  for (let at = previous(node), count = 0; at && count < MOST; at = previous(at), count++) loader = at
  const field = Object.keys(FIELDS).find((name) => loader?.widgets?.some((widget) => widget.name === name))
  return field && { folder: FIELDS[field], name: valueOf(loader, field) }
}

function previous(node) {
  return node.type === "GetNode" ? before(setterOf(node), 0) : before(node, modelInput(node))
}

/** A node that passes anything on says so with a star. */
function modelInput(node) {
  const model = node.inputs?.findIndex((input) => input.type === "MODEL") ?? -1
  const any = (node.inputs ?? []).flatMap((input, index) => (input.type === "*" && input.link != null ? [index] : []))
  return model < 0 && any.length === 1 ? any[0] : model
}

/** The node whose output an input of a node takes, in whatever graph it is. */
function before(node, index) {
  const link = node?.graph?.getLink(node.inputs?.[index]?.link)
  if (!link) return undefined
  return link.origin_id === FROM_OUTSIDE ? before(hostOf(node.graph), link.origin_slot) : inside(node.graph, link)
}

function inside(graph, link) {
  const node = graph.getNodeById(link.origin_id)
  if (!node?.subgraph) return node
  const inner = node.subgraph.getLink(node.subgraph.outputs[link.origin_slot]?.linkIds[0])
  if (!inner) return undefined
  return inner.origin_id === FROM_OUTSIDE ? before(node, inner.origin_slot) : inside(node.subgraph, inner)
}

function hostOf(graph) {
  let found
  eachNode(app.rootGraph, (node) => node.subgraph === graph && (found ??= node))
  return found
}

/** The nodes of other packs that hand a link on by a name. */
function setterOf(getter) {
  const name = getter.widgets?.[0]?.value
  return getter.graph.nodes.find((node) => node.type === "SetNode" && node.widgets?.[0]?.value === name)
}

/** What a field holds, or the node that is connected to it, or the field of a subgraph that shows it. */
function valueOf(node, name) {
  const link = node.graph.getLink(node.inputs?.find((input) => input.name === name)?.link)
  if (!link) return node.widgets?.find((widget) => widget.name === name)?.value
  if (link.origin_id !== FROM_OUTSIDE) return node.graph.getNodeById(link.origin_id)?.widgets?.[0]?.value
  const host = hostOf(node.graph)
  return host && valueOf(host, host.inputs[link.origin_slot].name)
}
