// The colours of a probability. Colour is never the only sign.

export function palette() {
  const style = getComputedStyle(document.documentElement)
  const colour = (name) => {
    const hex = style.getPropertyValue(name).trim()
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16))
  }
  return { stops: [colour('--human'), colour('--even'), colour('--machine')], none: colour('--none') }
}

export function shade(p, { stops, none }) {
  if (p === null) return none
  const [from, to, share] = p < 0.5 ? [stops[0], stops[1], 2 * p] : [stops[1], stops[2], 2 * p - 1]
  return from.map((value, i) => Math.round(value + share * (to[i] - value)))
}

export const css = (colour) => `rgb(${colour.join(' ')})`

// In addition to the colour, the result is shown by a pattern: Fake is hatched, and Inconclusive is dotted.
export function sign(made, { probability, result }, colours) {
  made.style.backgroundColor = css(shade(probability, colours))
  made.dataset.result = result
}
