// Elements without markup: whatever a file's header says is text and nothing else.

/** An element with properties, attributes (names with a dash, and role) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [key, value] of Object.entries(properties)) {
    if (key === "role" || key.includes("-")) made.setAttribute(key, value)
    else made[key] = value
  }
  made.append(...children)
  return made
}

/** An element of an SVG with attributes and children. */
export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.append(...children)
  return made
}

/** The folder of a name, with its slash, and the bare name. */
export function split(name) {
  const path = name.replaceAll("\\", "/").replace(/\.safetensors$/, "")
  const cut = path.lastIndexOf("/") + 1
  return [path.slice(0, cut), path.slice(cut)]
}
