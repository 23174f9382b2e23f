// Where what comes into a node comes from: back along its links, through reroutes, bypassed nodes and subgraphs.

import { app } from "../../../../scripts/app.js"
import { eachNode } from "./nodes.js"

const OUTSIDE = -10 // what a link inside a subgraph begins at that comes from outside
const BYPASSED = 4
const FARTHEST = 200 // nodes, as links may go in circles
const FILES = { // fields of loaders, with the folder of their files
  ckpt_name: "checkpoints", base_ckpt_name: "checkpoints", unet_name: "diffusion_models",
  model_name: "diffusion_models",
}

/**
 * Yields the node that an input comes from, then the one that its first input of the same type comes from, and so on.
 * Bypassed nodes and reroutes are passed over.
 */
export function* sourcesOf(node, name) {
  let [at, type] = [node, node?.inputs?.find((input) => input.name === name)?.type]
  let found = originOf(node, node?.inputs?.findIndex((input) => input.name === name) ?? -1)
  for (let count = 0; found && count < FARTHEST; count++) {
    at = found.node
    const passes = at.mode === BYPASSED || at.isVirtualNode
    if (!passes) yield at
    found = at.type === "GetNode" ? originOf(setterOf(at), 0) : originOf(at, slotLike(at, type, found.slot, passes))
  }
}

/** The nodes that the inputs of a node come from, which are of a type. */
export function sourcesOfType(node, type) {
  const inputs = (node?.inputs ?? []).filter((input) => input.type === type && input.link != null)
  return inputs.map((input) => sourcesOf(node, input.name).next().value).filter(Boolean)
}

/** The {folder, name} of the file that a node's MODEL was loaded from, as far as the graph tells. */
export function fileBehind(node) {
  const input = node.inputs?.find(({ type }) => type === "MODEL")
  const loader = input && [...sourcesOf(node, input.name)].pop()
  const field = Object.keys(FILES).find((name) => loader?.widgets?.some((widget) => widget.name === name))
  return field && { folder: FILES[field], name: shownIn(loader, field) }
}

/** The value of a widget by its name. */
export function valueOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name)?.value
}

/** What a field holds, or the node that is connected to it, or the field of a subgraph that shows it. */
function shownIn(node, name) {
  const link = node.graph.getLink(node.inputs?.find((input) => input.name === name)?.link)
  if (!link) return valueOf(node, name)
  if (link.origin_id !== OUTSIDE) return node.graph.getNodeById(link.origin_id)?.widgets?.[0]?.value
  const holder = holderOf(node.graph)
  return holder && shownIn(holder, holder.inputs[link.origin_slot]?.name)
}

/** The nodes of other packs that hand a link on by a name. */
function setterOf(getter) {
  const name = getter.widgets?.[0]?.value
  return getter.graph.nodes.find((node) => node.type === "SetNode" && node.widgets?.[0]?.value === name)
}

/** The node and output that an input is linked to, inside a subgraph or outside of it. */
function originOf(node, slot) {
  const link = node?.graph?.getLink?.(node.inputs?.[slot]?.link)
  return link ? resolved(node.graph, link.origin_id, link.origin_slot) : null
}

function resolved(graph, id, slot) {
  if (id === OUTSIDE) return originOf(holderOf(graph), slot)
  const node = graph.getNodeById(id)
  const inner = node?.subgraph
  if (!inner) return node ? { node, slot } : null
  const link = inner.getLink(inner.outputs?.[slot]?.linkIds?.[0])
  if (link?.origin_id === OUTSIDE) return originOf(node, link.origin_slot)
  return link ? resolved(inner, link.origin_id, link.origin_slot) : null
}

/** The node that stands for a subgraph; the first of several. */
function holderOf(graph) {
  let found = null
  eachNode(app.rootGraph, (node) => node.subgraph === graph && (found ??= node))
  return found
}

/**
 * The input that goes on with what came out: of a node that passes through, as the front end chooses it. A node that
 * passes anything on says so with a star.
 */
function slotLike(node, type, output, passes) {
  const inputs = node.inputs ?? []
  if (passes && (inputs[output]?.type === type || node.isVirtualNode)) return node.isVirtualNode ? 0 : output
  const same = inputs.findIndex((input) => input.type === type)
  const any = inputs.flatMap((input, index) => (input.type === "*" && input.link != null ? [index] : []))
  return same < 0 && any.length === 1 ? any[0] : same
}
