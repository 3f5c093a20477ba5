// Words, numbers and elements of the page. Text from the network or from files is added as text, never as markup.

export const $ = (id) => document.getElementById(id)

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children) // strings become text
  return made
}

export function percent(p) {
  if (p < 0.01) return '< 1 %' // never certain: rounding may have made it 0
  if (p > 0.99) return '> 99 %'
  return `${Math.round(100 * p)} %`
}

export function clock(seconds, digits = 1) {
  const rounded = Number(seconds.toFixed(digits)) // before it is split, or there would be a "0:60"
  const minutes = Math.floor(rounded / 60)
  const rest = (rounded - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, '0')
  return `${minutes}:${rest}`
}

// How many times as likely the sound is from one side as from the other, from a log-likelihood ratio.
export function odds(score) {
  const times = Math.exp(Math.abs(score))
  const side = score < 0 ? 'a human' : 'a machine'
  if (times < 1.05) return 'as likely from a human as from a machine'
  return `${times < 10 ? times.toFixed(1) : times < 1000 ? Math.round(times) : 'over 1000'} times as likely from ${side}`
}

// The number to show of an answer: that of the part that decided, if one did.
export function headline({ mean_probability, interval, decided_by }) {
  return decided_by ?? { probability: mean_probability, interval }
}
