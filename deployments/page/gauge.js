// The gauge: where an answer stands between human and machine, how sure that is, and from where on it is Fake.

import { element, headline, percent } from './words.js'

// Where Real ends and Fake begins, and where the mark stands without evidence, as probabilities.
export function scaleOf(info, operatingPoint) {
  const { prior } = info.decision
  const probability = (score) => 1 / (1 + Math.exp(-score - Math.log(prior / (1 - prior))))
  const threshold = info.operating_points[operatingPoint].threshold
  const real = Math.min(threshold, info.operating_points.balanced.threshold)
  return { real: probability(real), fake: probability(threshold), prior }
}

export function fillGauge(gauge, answer, { real, fake, prior }) {
  const { probability, interval } = headline(answer)
  gauge.hidden = probability === null
  if (probability === null) return
  const [low, high] = interval
  gauge.setAttribute(
    'aria-label',
    `Probability of machine-made speech ${percent(probability)}, between ${percent(low)} and ${percent(high)}`,
  )
  const lines = [...new Set([real, fake])].map((p) => at('gauge-line', p))
  const bar = element('div', { className: 'gauge-bar' }, at('gauge-fake', fake, 1), ...lines)
  bar.append(at('gauge-interval', low, high), at('gauge-mark', probability), at('gauge-prior', prior))
  const words = ['human', `Fake from ${percent(fake)} on`, 'machine'].map((word) => element('span', {}, word))
  const ends = element('div', { className: 'gauge-ends' }, ...words)
  gauge.replaceChildren(bar, ends)
}

export function explainGauge({ real, fake, prior }) {
  const realEnd = real === fake ? 'that point' : `the line at ${percent(real)}`
  return (
    'The thick mark is the probability that a machine made this speech; the frame around it is the range it likely ' +
    `lies in. The answer is Fake only if the whole frame lies in the hatched part, which begins at ${percent(fake)}, ` +
    `and Real only if all of it lies before ${realEnd}. ` +
    `Without any evidence the mark would stand at the triangle, ${percent(prior)}: the share of fakes expected.`
  )
}

function at(className, start, end = null) {
  const made = element('div', { className })
  made.style.left = `${100 * start}%`
  if (end !== null) made.style.right = `${100 * (1 - end)}%`
  return made
}
