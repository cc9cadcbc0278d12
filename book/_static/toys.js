// Live toys at the top of the chapters: plain drawing, no kernel, no library. The formulas are those of lib, and tests compare them.
const Toys = (() => {
  // ------------------------------------------------------------------------------------------------ the formulas
  const T = 1000;
  const products = (beta) => {
    const found = [];
    let product = 1;
    for (let t = 0; t < T; t += 1) found.push((product *= 1 - beta(t / (T - 1))));
    return found;
  };
  const linear = products((u) => 1e-4 + u * (0.02 - 1e-4)); // lib.ground.diffusion.linear
  const scaled = products((u) => (Math.sqrt(0.00085) + u * (Math.sqrt(0.012) - Math.sqrt(0.00085))) ** 2);
  const weight = (t, gamma) => (1 - linear[t]) ** gamma; // lib.papers.sdft.method.weight
  const radius = (s, lambda) => (s * (Math.PI + 4 * lambda)) / (Math.PI + 4 * lambda * s); // rdmd.best_radius
  const objective = (r, alpha, s, lambda) => // rdmd.surface, omega = 1
    (Math.PI * (r - s) ** 2) / (2 * s) + 2 * lambda * (1 + r * r - 2 * r * Math.cos(alpha));
  // A trained generator of Fig. 3, a denoiser held at noise level 1; its weights are those of rdmd-nets.js (tools.toys).
  const decode = ([step, bytes]) => Float64Array.from(atob(bytes), (c) => ((c.charCodeAt(0) << 24) >> 24) * step);
  const decoded = {};
  const generate = ([x, y], lambda) => {
    const parts = (decoded[lambda] ??= RDMD.nets[lambda].map(decode)), total = 1 + RDMD.deviation ** 2;
    let h = [x, y];
    for (let i = 0; i < parts.length; i += 2) {
      const [weight, bias] = [parts[i], parts[i + 1]];
      const sums = [...bias].map((b, k) => h.reduce((sum, value, j) => sum + weight[k * h.length + j] * value, b));
      h = i + 2 < parts.length ? sums.map((z) => z / (1 + Math.exp(-z))) : sums;
    }
    return [x, y].map((value, i) => (RDMD.deviation ** 2 * value) / total + (RDMD.deviation * h[i]) / Math.sqrt(total));
  };
  const angle = (shots) => { // degrees between the mean of the shots and the target, seen from the source's mean (1, 1)
    const mean = [0, 1].map((i) => shots.reduce((sum, shot) => sum + shot[i], 0) / shots.length - 1);
    const off = Math.atan2(mean[1], mean[0]) - Math.atan2(-2, -2);
    return (Math.abs(Math.atan2(Math.sin(off), Math.cos(off))) * 180) / Math.PI;
  };
  // Directions in a world of unit Gaussian pixels, lib.papers.dds.gaussian: exact predictions, means m of null, source, target.
  const guided = (zt, t, m, prompt, omega) => {
    const mean = m[0] + omega * (m[prompt] - m[0]);
    return Math.sqrt(1 - scaled[t]) * (zt - Math.sqrt(scaled[t]) * mean);
  };
  const noised = (z, t, eps) => Math.sqrt(scaled[t]) * z + Math.sqrt(1 - scaled[t]) * eps;
  const sds = (z, t, eps, m, omega) => guided(noised(z, t, eps), t, m, 2, omega) - eps;
  const dds = (z, zHat, t, eps, m, omega) =>
    guided(noised(z, t, eps), t, m, 2, omega) - guided(noised(zHat, t, eps), t, m, 1, omega);

  // ------------------------------------------------------------------------------------------------- drawing
  const make = (tag, parent, given = {}) => {
    const svg = ["svg", "path", "line", "circle", "rect", "text", "g"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  };
  const canvas = (root, width, height, label) => {
    const made = make("svg", root, { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    made.style.maxWidth = `${width}px`;
    return made;
  };
  const slider = (root, words, [low, high, step, value], show, act) => {
    const label = make("label", root, { class: "toy-slider" });
    const name = make("span", label);
    const input = make("input", label, { type: "range", min: low, max: high, step, value });
    const apply = () => {
      const value = show(Number(input.value));
      name.textContent = `${words} = ${value}`;
      input.setAttribute("aria-valuetext", value);
      act(Number(input.value));
    };
    input.addEventListener("input", apply);
    return apply;
  };
  const button = (root, words, act) => {
    const made = make("button", root, { type: "button", class: "toy-button" });
    made.textContent = words;
    made.addEventListener("click", () => act(made));
    return made;
  };
  const gaussian = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const path = (xs, ys) => xs.map((x, i) => `${i ? "L" : "M"}${x.toFixed(1)} ${ys[i].toFixed(1)}`).join("");

  // --------------------------------------------------------------------------------------------------- the toys
  const sdftWeight = (root) => {
    const plot = canvas(root, 560, 190, "Weight over the timestep");
    const curve = make("path", plot, { class: "toy-curve" });
    make("path", plot, { class: "toy-axis", d: "M40 10V160H550" });
    for (const t of [0, 250, 500, 750, 999]) make("text", plot, { class: "toy-text", x: 40 + t * 0.5, y: 178, "text-anchor": "middle" }).textContent = t;
    for (const w of [0, 0.5, 1]) make("text", plot, { class: "toy-text", x: 34, y: 164 - 150 * w, "text-anchor": "end" }).textContent = w;
    const half = make("line", plot, { class: "toy-mark", y1: 10, y2: 160 });
    const words = make("p", root, { class: "toy-words", "aria-live": "polite" });
    const ts = [...Array(T).keys()];
    slider(root, "γ", [-1, 2, 0.02, 0.477], (x) => (10 ** x).toPrecision(2), (x) => {
      const gamma = 10 ** x;
      curve.setAttribute("d", path(ts.map((t) => 40 + t * 0.5), ts.map((t) => 160 - 150 * weight(t, gamma))));
      const at = ts.find((t) => weight(t, gamma) >= 0.5) ?? T - 1;
      half.setAttribute("x1", 40 + at * 0.5);
      half.setAttribute("x2", 40 + at * 0.5);
      words.textContent = `half of the weight is reached at t = ${at}`;
    })();
  };

  const rdmdMap = (root) => {
    const s = 1.5, size = 240, scale = size / 4.8;
    const row = make("div", root, { class: "toy-row" });
    const heat = make("canvas", row, { width: 120, height: 120, role: "img", "aria-label": "The objective over scale and rotation" });
    heat.style.width = `${size}px`;
    const plot = canvas(row, size, size, "Inputs and outputs of the map");
    const points = [...Array(60)].map(() => [gaussian(), gaussian()]);
    const lines = points.map(() => make("line", plot, { class: "toy-line" }));
    const dots = points.map(() => make("circle", plot, { class: "toy-dot", r: 2.5 }));
    const words = make("p", root, { class: "toy-words", "aria-live": "polite" });
    let turn = 0;
    const apply = slider(root, "λ", [0, 2, 0.02, 0.2], (x) => x.toFixed(2), (lambda) => {
      const context = heat.getContext("2d"), image = context.createImageData(120, 120);
      const values = [];
      for (let i = 0; i < 120; i += 1) for (let j = 0; j < 120; j += 1) {
        const a = (j - 59.5) / 25, b = (59.5 - i) / 25;
        values.push(objective(Math.hypot(a, b), Math.atan2(b, a), s, lambda));
      }
      const least = Math.min(...values);
      values.forEach((value, k) => {
        const depth = Math.min(1, Math.sqrt((value - least) / 3));
        image.data.set([40 + 200 * depth, 70 + 160 * depth, 130 + 90 * depth, 255], 4 * k);
      });
      context.putImageData(image, 0, 0);
      const r = radius(s, lambda), alpha = lambda ? 0 : turn;
      context.fillStyle = "#ff8c1a";
      context.beginPath();
      context.arc(59.5 + 25 * r * Math.cos(alpha), 59.5 - 25 * r * Math.sin(alpha), 3, 0, 7);
      context.fill();
      points.forEach(([x, y], k) => {
        const to = [r * (x * Math.cos(alpha) - y * Math.sin(alpha)), r * (x * Math.sin(alpha) + y * Math.cos(alpha))];
        const [a, b, c, d] = [x, y, ...to].map((v, i) => size / 2 + (i % 2 ? -v : v) * scale / 1.9);
        for (const [key, value] of Object.entries({ x1: a, y1: b, x2: c, y2: d })) lines[k].setAttribute(key, value);
        dots[k].setAttribute("cx", c);
        dots[k].setAttribute("cy", d);
      });
      words.textContent = lambda ? `one minimum, at scale r* = ${r.toFixed(3)} and no rotation; optimal transport has 1.5`
        : "a circle of minima: every rotation matches the target as well as any other";
    });
    button(root, "turn (at λ = 0)", () => { turn += Math.PI / 6; apply(); });
    apply();
  };

  const rdmdNets = (root) => {
    const plot = canvas(root, 340, 300, "Trained maps from a Gaussian to eight: a cloud, and a ring to be moved");
    const place = ([x, y]) => [170 + 27 * x, 150 - 27 * y], lambdas = Object.keys(RDMD.nets).sort((a, b) => a - b);
    const inputs = [...Array(250)].map(() => [gaussian(), gaussian()]);
    const dots = inputs.map(() => make("circle", plot, { class: "toy-faint", r: 1.6 }));
    const ring = make("path", plot, { class: "toy-mark toy-ring" }), image = make("path", plot, { class: "toy-curve" });
    const words = make("p", root, { class: "toy-words", "aria-live": "polite" });
    const turn = [...Array(121).keys()].map((i) => (i * Math.PI) / 60);
    let lambda = "0.2", centre = [0.6, 0.4];
    const closed = (points) => path(...[0, 1].map((i) => points.map((point) => place(point)[i])));
    const show = () => {
      const around = turn.map((a) => [centre[0] + 0.5 * Math.cos(a), centre[1] + 0.5 * Math.sin(a)]);
      ring.setAttribute("d", closed(around));
      image.setAttribute("d", closed(around.map((point) => generate(point, lambda))));
      const [x, y] = generate(centre, lambda);
      words.textContent = `G(${centre.map((v) => v.toFixed(1)).join(", ")}) = (${x.toFixed(1)}, ${y.toFixed(1)})`;
    };
    slider(root, "λ", [0, lambdas.length - 1, 1, lambdas.indexOf(lambda)], (i) => lambdas[i], (i) => {
      lambda = lambdas[i];
      inputs.forEach((point, k) => {
        const [a, b] = place(generate(point, lambda));
        dots[k].setAttribute("cx", a);
        dots[k].setAttribute("cy", b);
      });
      show();
    })();
    for (const [i, name] of ["x", "y"].entries())
      slider(root, `ring, ${name}`, [-2.5, 2.5, 0.1, centre[i]], (v) => v.toFixed(1), (v) => { centre[i] = v; show(); })();
    const move = (event) => {
      const box = plot.getBoundingClientRect(), scale = 340 / box.width;
      const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      centre = [(at[0] - 170) / 27, (150 - at[1]) / 27].map((v) => Math.max(-2.5, Math.min(2.5, v)));
      [...root.querySelectorAll("input")].slice(1).forEach((input, i) => { input.value = centre[i]; input.dispatchEvent(new Event("input")); });
    };
    plot.addEventListener("pointerdown", move);
    plot.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
  };

  const antShots = (root) => {
    const row = make("div", root, { class: "toy-row" });
    const plot = canvas(row, 240, 200, "Ten shots, and the direction to their mean");
    const bars = canvas(row, 300, 200, "Histogram of angle errors");
    const place = ([x, y]) => [130 + 28 * x, 90 - 28 * y];
    const arrow = (name) => make("line", plot, { class: name });
    const ideal = arrow("toy-mark"), found = arrow("toy-curve");
    const shots = [...Array(10)].map(() => make("circle", plot, { class: "toy-dot", r: 3 }));
    const from = place([1, 1]);
    make("circle", plot, { class: "toy-origin", cx: from[0], cy: from[1], r: 4 });
    const draw = (line, to) => { const at = place(to); line.setAttribute("x1", from[0]); line.setAttribute("y1", from[1]); line.setAttribute("x2", at[0]); line.setAttribute("y2", at[1]); };
    draw(ideal, [-1, -1]);
    make("path", bars, { class: "toy-axis", d: "M20 10V175H290" });
    for (const at of [0, 5, 10, 15, 20]) make("text", bars, { class: "toy-text", x: 20 + at * 13, y: 192, "text-anchor": "middle" }).textContent = `${at}°`;
    const counts = Array(20).fill(0), columns = counts.map((_, i) => make("rect", bars, { class: "toy-bar", x: 21 + 13 * i, width: 11 }));
    const words = make("p", root, { class: "toy-words", "aria-live": "polite" });
    let total = 0, sum = 0, beyond = 0;
    make("line", bars, { class: "toy-mark", x1: 20 + 13 * 13.8, x2: 20 + 13 * 13.8, y1: 15, y2: 175 });
    make("text", bars, { class: "toy-text", x: 24 + 13 * 13.8, y: 24 }).textContent = "paper: 13.8°";
    const again = (times) => {
      for (let k = 0; k < times; k += 1) {
        const drawn = [...Array(10)].map(() => [gaussian() - 1, gaussian() - 1]);
        const error = angle(drawn);
        counts[Math.min(19, Math.floor(error))] += 1;
        total += 1;
        sum += error;
        beyond += error >= 13.8;
        if (k === times - 1) {
          drawn.forEach((shot, i) => { const at = place(shot); shots[i].setAttribute("cx", at[0]); shots[i].setAttribute("cy", at[1]); });
          draw(found, [0, 1].map((i) => drawn.reduce((x, shot) => x + shot[i], 0) / 10));
          words.textContent = `this draw: ${error.toFixed(1)}°; mean of ${total} draws: ${(sum / total).toFixed(1)}°; ${beyond} of them at 13.8° or more`;
        }
      }
      const top = Math.max(...counts);
      columns.forEach((column, i) => { column.setAttribute("height", (160 * counts[i]) / top); column.setAttribute("y", 175 - (160 * counts[i]) / top); });
    };
    button(root, "draw ten shots again", () => again(1));
    button(root, "a hundred times", () => again(100));
    again(1);
  };

  const ddsWorld = (root) => {
    const n = 24, eta = 200 / 4096, row = make("div", root, { class: "toy-row" });
    const panels = ["input", "DDS", "SDS"].map((name) => {
      const box = make("figure", row, { class: "toy-figure" });
      const view = make("canvas", box, { width: n, height: n, role: "img", "aria-label": name });
      make("figcaption", box).textContent = name;
      return view;
    });
    const inside = (i) => Math.hypot((i % n) - 11, Math.floor(i / n) - 12) < 6;
    const coarse = [...Array(36)].map(gaussian);
    const smooth = (i) => { // a soft texture, so that one sees what is lost
      const x = ((i % n) / n) * 4.99, y = (Math.floor(i / n) / n) * 4.99, a = Math.floor(x), b = Math.floor(y), u = x - a, v = y - b;
      const at = (p, q) => coarse[q * 6 + p];
      return 1.3 * ((1 - u) * (1 - v) * at(a, b) + u * (1 - v) * at(a + 1, b) + (1 - u) * v * at(a, b + 1) + u * v * at(a + 1, b + 1));
    };
    const zHat = [...Array(n * n).keys()].map(smooth);
    let zs = [[...zHat], [...zHat]], step = 0, omega = 7.5, timer = 0;
    const words = make("p", root, { class: "toy-words" });
    const show = () => {
      [zHat, ...zs].forEach((z, k) => {
        const context = panels[k].getContext("2d"), image = context.createImageData(n, n);
        z.forEach((value, i) => { const grey = 127 - 45 * value; image.data.set([grey, grey, grey, 255], 4 * i); });
        context.putImageData(image, 0, 0);
      });
      words.textContent = `step ${step} of 200`;
    };
    const once = () => {
      const t = 50 + Math.floor(Math.random() * 899);
      zHat.forEach((hat, i) => {
        const eps = gaussian(), m = [0, 0, inside(i) ? 2 / 7.5 : 0];
        zs[0][i] -= eta * dds(zs[0][i], hat, t, eps, m, omega);
        zs[1][i] -= eta * sds(zs[1][i], t, eps, m, omega);
      });
      step += 1;
    };
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "play"; };
    const play = button(root, "play", () => {
      if (timer) { stop(); return; }
      if (step >= 200) { zs = [[...zHat], [...zHat]]; step = 0; }
      play.textContent = "pause";
      timer = setInterval(() => { once(); once(); show(); if (step >= 200) stop(); }, 40);
    });
    button(root, "from the start", () => { stop(); zs = [[...zHat], [...zHat]]; step = 0; show(); });
    slider(root, "guidance ω", [1, 15, 0.5, 7.5], (x) => x.toFixed(1), (x) => { omega = x; })();
    show();
  };

  const toys = { "sdft-weight": sdftWeight, "rdmd-map": rdmdMap, "rdmd-nets": rdmdNets, "ant-shots": antShots, "dds-world": ddsWorld };
  document.addEventListener("DOMContentLoaded", () => {
    for (const root of document.querySelectorAll(".toy[data-toy]")) toys[root.dataset.toy](root);
  });
  return { weight, radius, objective, generate, angle, sds, dds };
})();
