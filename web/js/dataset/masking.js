// ComfyUI's own mask editor, opened for a picture of a data set. It opens for a selected node that shows a picture, so there
// is such a node for as long as it is open, of which no step to undo and no saved workflow knows.

import { app } from "../../../../scripts/app.js"
import { element } from "../page/dom.js"
import { captured } from "../page/undo.js"
import { word } from "../page/words.js"
import { canvasUrl, Refusal } from "./server.js"

const COMMAND = "Comfy.MaskEditor.OpenMaskEditor"
const EDITOR = "[data-testid='mask-editor-root']"
const KIND = "PreviewImage" // of a node that shows pictures, and has no field of its own
const AWAY = 100000 // px from what is in sight
const PATIENCE = 20000 // ms until the editor is there

/** Lets a person paint the mask of a picture of the page. */
export async function paintMask(page, name) {
  const picture = page.book.byName.get(name)
  document.activeElement?.blur?.() // a caption that is being typed is saved before
  try {
    const painted = await page.beside(() => paint(canvasUrl(page.asked, picture)))
    if (painted) await page.book.paint(name, painted)
    if (painted) page.drawMasks()
  } catch (error) {
    page.say(word("Not painted: {why}", { why: error.message }), true)
  }
  page.grid.focus(name)
}

/** Lets a person paint on the picture at an address; the name of the file that was saved, undefined where none was. */
async function paint(address) {
  const { canvas } = app
  const { graph } = canvas
  const selected = [...canvas.selectedItems]
  const last = graph.last_node_id
  captured()
  canvas.emitBeforeChange()
  const node = standIn(address)
  const note = hint()
  try {
    graph.add(node)
    forgetOutputs(node)
    canvas.selectItems([node])
    await app.extensionManager.command.execute(COMMAND)
    await until(() => document.querySelector(EDITOR), PATIENCE)
    note.showPopover()
    await until(() => !document.querySelector(EDITOR))
    return node.images?.[0]?.filename
  } finally {
    note.remove()
    forgetOutputs(node)
    graph.remove(node)
    if (selected.length) canvas.selectItems(selected)
    else canvas.deselectAll()
    graph.last_node_id = last
    canvas.emitAfterChange()
  }
}

function standIn(address) {
  const node = window.LiteGraph.createNode(KIND)
  const [left, top] = app.canvas.visible_area
  node.pos = [left - AWAY, top]
  node.flags.collapsed = true // or Nodes 2.0 would load what was saved, which is gone soon
  node.imgs = [Object.assign(new Image(), { src: address })]
  return node
}

/** What a node shows is kept for its number, and would be shown on the next one that has it: also in the editor. */
function forgetOutputs({ graph, id }) {
  delete app.nodeOutputs[graph === app.rootGraph ? id : `${graph.id}:${id}`]
}

function hint() {
  const words = word("Paint what is to be learned; the rest is left out. Save to keep it. Clear and Save: no mask, all is learned.")
  const made = element("div", { className: "loom loom-set-hint", popover: "manual", role: "note" }, words)
  document.body.append(made)
  return made
}

/** Waits for what is so after a change of the page. Raises Refusal after so many ms. */
function until(so, patience = 0) {
  return new Promise((resolve, reject) => {
    const end = () => {
      observer.disconnect()
      clearTimeout(late)
    }
    const observer = new MutationObserver(() => so() && (end(), resolve()))
    const refuse = () => (end(), reject(new Refusal(word("ComfyUI's mask editor did not open"))))
    const late = patience ? setTimeout(refuse, patience) : 0
    observer.observe(document.body, { childList: true, subtree: true })
    if (so()) (end(), resolve())
  })
}
