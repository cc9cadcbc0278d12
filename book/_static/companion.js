// Sliders: one of their frames is shown, and named.
document.addEventListener("DOMContentLoaded", () => {
  for (const slider of document.querySelectorAll(".slider")) {
    const labels = JSON.parse(slider.dataset.labels), input = slider.querySelector("input");
    const output = slider.querySelector("output"), label = slider.querySelector("label");
    label.hidden = false;
    const apply = () => {
      const chosen = Number(input.value);
      slider.querySelectorAll(":scope > div").forEach((frame, i) => { frame.hidden = i !== chosen; });
      input.setAttribute("aria-valuetext", labels[chosen]);
      output.textContent = labels[chosen];
    };
    input.addEventListener("input", apply);
    apply();
  }
});

// Display equations are set smaller where the column is narrower than they are; what scrolls sideways does so by keyboard, too.
{
  const fit = () => {
    for (const box of document.querySelectorAll("div.math")) {
      const equation = box.querySelector(".katex-display");
      if (!equation || !box.clientWidth) continue;
      equation.style.fontSize = "";
      const { paddingLeft, paddingRight } = getComputedStyle(box);
      const room = box.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
      const share = room / equation.querySelector(".katex-html").scrollWidth;
      if (share < 1) equation.style.fontSize = `${98 * share}%`;
    }
    for (const box of document.querySelectorAll(".results-table, .claim-table, .table-box")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    }
  };
  window.addEventListener("load", () => document.fonts.ready.then(fit));
  window.addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true); // a fold that was opened
}

// The scorecard's filter: shows the rows of one paper, one verdict, or both. Without scripts the whole table is shown.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.scorecard-filter");
  const table = document.querySelector("table.scorecard");
  if (!form || !table) return;
  form.hidden = false;
  const apply = () => {
    const paper = form.elements.paper.value;
    const verdict = form.elements.verdict.value;
    let shown = 0;
    for (const body of table.tBodies) {
      let inBody = 0;
      for (const row of body.querySelectorAll("tr[data-verdict]")) {
        row.hidden = Boolean((paper && body.dataset.paper !== paper) || (verdict && row.dataset.verdict !== verdict));
        if (!row.hidden) inBody += 1;
      }
      body.hidden = inBody === 0;
      shown += inBody;
    }
    form.querySelector("output").textContent = `${shown} claims shown`;
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
});

// The forest plot's filter: one kind of evidence, or all.
document.addEventListener("DOMContentLoaded", () => {
  for (const forest of document.querySelectorAll(".forest")) {
    const form = forest.querySelector(".forest-filter");
    form.hidden = false;
    form.addEventListener("change", () => {
      for (const row of forest.querySelectorAll("[data-kind]")) {
        row.hidden = form.elements.kind.value !== "all" && row.dataset.kind !== form.elements.kind.value;
      }
    });
  }
});

// "Predict, then reveal": cards hide their result until the reader has said where it will lie. Off unless asked for.
document.addEventListener("DOMContentLoaded", () => {
  const forms = [...document.querySelectorAll("form.claim-predict")];
  if (forms.length < 2) return;
  const kept = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a browser that keeps nothing */ } };
  const said = (form, share) => {
    const { start, end, log } = form.dataset;
    const x = Number(start) + ((Number(end) - Number(start)) * share) / 100;
    return log === "1" ? Math.exp(x) : x;
  };
  const button = document.createElement("button");
  button.type = "button";
  button.className = "toy-button predict-switch";
  forms[0].closest(".claim-card").before(button);
  const apply = () => {
    const on = kept("predict") === "on";
    button.textContent = on ? "show all results" : "predict before you see the results";
    for (const form of forms) {
      const guess = kept(`predict-${form.dataset.claim}`), card = form.closest(".claim-card");
      form.hidden = !on;
      card.classList.toggle("predicting", on && guess === null);
      form.querySelector("button").hidden = form.querySelector("input").disabled = guess !== null;
      if (guess !== null) {
        const value = Number(guess), { low, high, mean } = form.dataset;
        const where = value >= Number(low) && value <= Number(high) ? ", inside the interval" : ", outside the interval";
        form.querySelector("output").textContent = `you said ${value.toPrecision(3)}; measured ${Number(mean).toPrecision(3)}${low === high || low === "None" ? "" : where}`;
      }
    }
  };
  for (const form of forms) {
    const input = form.querySelector("input");
    const output = form.querySelector("output");
    output.tabIndex = -1;
    input.addEventListener("input", () => {
      output.textContent = said(form, input.value).toPrecision(3);
      input.setAttribute("aria-valuetext", output.textContent);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      keep(`predict-${form.dataset.claim}`, said(form, input.value));
      apply();
      output.focus();
    });
  }
  button.addEventListener("click", () => { keep("predict", kept("predict") === "on" ? "off" : "on"); apply(); });
  apply();
});
