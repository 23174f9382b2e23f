"""Whether the texts of ours on a page can be read, on light and dark themes."""

from __future__ import annotations

from collections.abc import Iterator

from harness.browser import FrontEnd

LEAST = 4.5  # of WCAG AA
DARK = """([within, dark]) => {
    const [red] = getComputedStyle(document.querySelector(within)).color.match(/\\d+/)
    return (red > 127) === dark
}"""
# Of each text, what is painted below it lies over each other; what is drawn on the canvas lies over a node's colour.
RATIOS = """(within) => {
    const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1)
        pen.fillStyle = colour
        pen.fillRect(0, 0, 1, 1)
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
        return [r, g, b, a / 255]
    }
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1]
    const light = (colour) => colour.slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0)
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b)
        return (high + 0.05) / (low + 0.05)
    }
    const found = []
    const look = (element, style, words) => {
        const up = []
        for (let each = element; each; each = each.parentElement) up.unshift(each)
        const widget = up.findIndex((each) => each.matches('.dom-widget, .lg-node'))
        let ground = widget < 0 ? [0, 0, 0, 1] : rgba(LiteGraph.NODE_DEFAULT_BGCOLOR), seen = 1
        for (const each of up.slice(Math.max(widget, 0))) {
            seen *= Number(getComputedStyle(each).opacity)
            ground = over(rgba(getComputedStyle(each).backgroundColor), ground)
        }
        const [r, g, b, a] = rgba(element.ownerSVGElement ? style.fill : style.color)
        const name = element.className.baseVal ?? element.className
        found.push([ratio(over([r, g, b, a * seen], ground), ground), words, name])
    }
    for (const each of document.querySelectorAll(`${within} *`)) {
        const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
        if (!each.checkVisibility({ visibilityProperty: true }) || each.matches(':disabled, option')) continue
        const shows = own || each.matches('svg.loom-icon, input:not([type=range], [type=checkbox])')
        if (shows) look(each, getComputedStyle(each), (each.value || each.textContent).slice(0, 40))
        if (each.placeholder) look(each, getComputedStyle(each, '::placeholder'), each.placeholder)
    }
    return found
}"""


def themes(front: FrontEnd, within: str) -> Iterator[str]:
    """Each in turn, once the element at that selector has its colours; the dark one, which was there, is there again in
    the end."""
    for theme in ("light", "dark"):
        front.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", theme)
        front.page.wait_for_function(DARK, arg=[within, theme == "dark"])
        yield theme


def expect_readable(front: FrontEnd, within: str, least: int = 1) -> None:
    """Waits until all texts and icons in an element, of which there are so many at least, have enough contrast."""

    def poor() -> list[list]:
        found = front.page.evaluate(RATIOS, within)
        return [each for each in found if each[0] < LEAST] if len(found) >= least else [["too few", *found]]

    front.becomes(poor, [])
