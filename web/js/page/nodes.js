// What both renderers of the front end need to be told about a node and its widgets.

import { app } from "../../../../scripts/app.js"

const GAP = 60 // px between nodes

/**
 * `hidden` of the widget is what the canvas looks at, that of its options what Nodes 2.0 does. A subgraph that has the
 * widget for its own copies the options that can be listed, and is to show what is hidden here.
 */
export function hide(widget, hidden) {
  widget.hidden = hidden
  Object.defineProperty(widget.options, "hidden", { value: hidden, configurable: true, writable: true, enumerable: false })
}

/** Nodes 2.0 asks its widgets whether they are hidden when the list of them changes, and only then. */
export function lookAnew(node) {
  const widgets = [...node.widgets]
  node.widgets = []
  node.widgets = widgets
}

/** Calls `then` after the object's own method, of which there may be none, with what it was called with. */
export function after(object, method, then) {
  const before = object[method]
  object[method] = function (...values) {
    const result = before?.apply(this, values)
    then(...values)
    return result
  }
}

/**
 * Calls `hear` with a signal that ends what it listens to when the node leaves its graph, and again when it comes back:
 * the front end keeps nodes with a text field after they are removed, and with them all that listeners see.
 */
export function whileThere(node, hear) {
  let stay = null
  const start = () => {
    stay?.abort()
    stay = new AbortController()
    hear(stay.signal)
  }
  after(node, "onAdded", start)
  after(node, "onRemoved", () => stay?.abort())
  if (node.graph) start()
}

/** The wheel zooms the canvas over what lies on it, too. */
export function toCanvas(event) {
  event.preventDefault()
  app.canvas.processMouseWheel(event)
}

/** The node that the server names, which may be inside subgraphs: "5:3" is node 3 of the subgraph of node 5. */
export function nodeOf(executionId) {
  let graph = app.rootGraph
  let node = null
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id)
    graph = node?.subgraph
  }
  return node
}

/** The id by which the server names a node, as `nodeOf` takes it; undefined for one that is in no graph on screen. */
export function executionIdOf(node, graph = app.rootGraph, before = "") {
  if (!graph || !node.graph) return undefined
  if (node.graph === graph) return `${before}${node.id}`
  for (const each of graph.nodes ?? []) {
    const found = each.subgraph && executionIdOf(node, each.subgraph, `${before}${each.id}:`)
    if (found) return found
  }
  return undefined
}

/** Whether one of these inputs has its value from another node. */
export function isLinked(node, ...names) {
  return Boolean(node.inputs?.some(({ name, link }) => names.includes(name) && link != null))
}

/** Nodes 2.0 keeps the element of a node that was there before under the same id, as after an undo. */
export function takePlace(node, element, selector, frames = 30) {
  if (element.isConnected || !node.graph || !frames) return
  document.querySelector(`[data-node-id="${node.id}"] ${selector}`)?.replaceWith(element)
  requestAnimationFrame(() => takePlace(node, element, selector, frames - 1))
}

/** Calls `visit` with every node of a graph, if there is one, and of the subgraphs in it. */
export function eachNode(graph, visit) {
  for (const node of graph?.nodes ?? []) {
    visit(node)
    eachNode(node.subgraph, visit)
  }
}

/** A place beside another node, and lower down where something is in the way. */
export function freePlace(node, beside) {
  const [x, top] = [beside.pos[0] + beside.size[0] + GAP, beside.pos[1]]
  const inTheWay = (y) => node.graph.nodes.find((other) => other !== node
    && other.pos[0] < x + node.size[0] && other.pos[0] + other.size[0] > x
    && other.pos[1] - GAP < y + node.size[1] && other.pos[1] + other.size[1] + GAP > y)
  let y = top
  for (let hit = inTheWay(y); hit; hit = inTheWay(y)) y = hit.pos[1] + hit.size[1] + GAP
  return [x, y]
}
