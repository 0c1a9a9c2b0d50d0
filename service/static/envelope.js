// The mathematics of the page: each class's logit is a line over alpha. The same walk, in the same order of operations,
// as service/tradeoff.py and service/scoring.py, so that the page says what the service would. Knows no document.

/** Lines of all classes once prior_strength is applied: logit = heights[c] - alpha * slopes[c]. */
export function linesAt({ factual_logits, counterfactual_logits }, logShare, priorStrength) {
  return {
    heights: factual_logits.map((logit, index) => logit - priorStrength * logShare[index]),
    slopes: counterfactual_logits,
  };
}

export function logShare(classes) {
  const total = classes.reduce((sum, each) => sum + each.train_count, 0);
  return classes.map((each) => Math.log(each.train_count / total));
}

export function logitsAt({ heights, slopes }, alpha) {
  return heights.map((height, index) => height - alpha * slopes[index]);
}

/** Class indices from the highest to the lowest logit; of equal ones the lower index first. */
export function ranking(logits) {
  return logits.map((_, index) => index).sort((one, other) => logits[other] - logits[one] || one - other);
}

/** What divides the logits before they become probabilities, as service/temperature.py has it; 1 without calibration. */
export function temperature(calibration, alpha, priorStrength) {
  if (!calibration) return 1;
  const s = Math.min(priorStrength, calibration.largest_prior_strength);
  const terms = [1, alpha, alpha * alpha, s, s * s, alpha * s];
  const log = calibration.log_temperature.reduce((sum, coefficient, index) => sum + coefficient * terms[index], 0);
  return Math.exp(Math.min(Math.max(log, -3), 3));
}

export function probabilities(logits, divisor) {
  const highest = logits.reduce((high, logit) => Math.max(high, logit), -Infinity);
  const weights = logits.map((logit) => Math.exp((logit - highest) / divisor));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** The winners over alpha in [low, high]: winners[i] wins between breakpoints[i - 1] and breakpoints[i]. */
export function upperEnvelope(lines, low, high) {
  const breakpoints = [];
  const winners = [ranking(logitsAt(lines, low))[0]];
  const last = ranking(logitsAt(lines, high))[0];
  let winner = winners[0];
  while (winner !== last) {
    const [crossing, rival] = nextCrossing(lines, winner, last);
    breakpoints.push(Math.min(Math.max(crossing, breakpoints.at(-1) ?? low), high));
    winners.push(rival);
    winner = rival;
  }
  return { low, high, breakpoints, winners };
}

function nextCrossing({ heights, slopes }, winner, last) {
  let crossing = Infinity;
  let rival = last;
  slopes.forEach((slope, index) => {
    if (!(slope < slopes[winner] && slope >= slopes[last])) return;
    const where = (heights[winner] - heights[index]) / (slopes[winner] - slope);
    if (where < crossing || (where === crossing && slope < slopes[rival])) [crossing, rival] = [where, index];
  });
  return [crossing, slopes[rival] === slopes[last] ? last : rival];
}

/** The stretches of the envelope: from where to where who wins. */
export function stretches({ low, high, breakpoints, winners }) {
  return winners.map((winner, index) => ({
    winner,
    from: index ? breakpoints[index - 1] : low,
    to: breakpoints[index] ?? high,
  }));
}

/** The stretch that alpha lies on; on a breakpoint that of the lower class index, as the service says. */
export function stretchAt(envelope, alpha) {
  return stretches(envelope)
    .filter(({ from, to }) => from <= alpha && alpha <= to)
    .reduce((best, each) => (each.winner < best.winner ? each : best));
}

/** The roundest number a little way into a stretch: where to go to see its winner. */
export function justWithin({ from, to }) {
  const limit = from + Math.min((to - from) / 2, 0.02);
  for (let digits = 1; digits <= 9; digits += 1) {
    const rounded = Number((Math.floor(from * 10 ** digits + 1) / 10 ** digits).toFixed(digits));
    if (from < rounded && rounded <= limit) return rounded;
  }
  return limit;
}
