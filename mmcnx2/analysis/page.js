// What a page does: tables that sort, charts drawn by Plotly when they come near. page.py puts it in, after the content.
// Plotly lies packed in the page and is unpacked for the first chart. Without it, or in an old browser, the still pictures
// of the charts are shown instead. Guarded by tests/test_report_browser.py.
(() => {
  'use strict';

  // ---- tables

  const MISSING = new Set(['', '-', 'nan']);

  // What a cell sorts by: the number behind it, else the number that its text starts with, else the text.
  function sortKey(cell) {
    const text = (cell.dataset.sort ?? cell.textContent).trim();
    if (MISSING.has(text.toLowerCase())) return null;
    const number = cell.dataset.value ?? /^[-+]?[\d.]+(?:e[-+]?\d+)?/i.exec(text)?.[0];
    const value = number === undefined ? NaN : Number(number);
    return Number.isNaN(value) ? text : value;
  }

  function compare(a, b) {
    if (typeof a === 'number' && typeof b === 'number') return a - b;
    return String(a).localeCompare(String(b), undefined, {numeric: true});
  }

  function sortTable(table, column, descending) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({row, place, key: sortKey(row.cells[column])}));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) {  // what is missing stays below, whichever way
        return (a.key === null) - (b.key === null) || a.place - b.place;
      }
      return (descending ? -1 : 1) * compare(a.key, b.key) || a.place - b.place;
    });
    body.append(...rows.map(({row}) => row));
    for (const head of table.tHead.rows[0].cells) head.removeAttribute('aria-sort');
    table.tHead.rows[0].cells[column].setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  }

  for (const table of document.querySelectorAll('table')) {
    if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = head.textContent || 'name';
      if (!head.textContent) button.className = 'pale';
      head.replaceChildren(button);
      button.addEventListener('click', () => {
        sortTable(table, column, head.getAttribute('aria-sort') === 'ascending');
      });
    });
  }

  // ---- charts

  const DASHES = {'-': 'solid', '--': 'dash', '-.': 'dashdot', ':': 'dot'};
  const charts = new Map();  // figure -> {data, box, hidden labels, log}
  let library;

  function plotly() {
    library ??= (async () => {
      const packed = atob(document.getElementById('plotly').textContent);
      const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
      const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
      const script = document.createElement('script');
      script.textContent = await new Response(unpacked).text();
      document.head.append(script);
      return window.Plotly;
    })();
    return library;
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function faded(hex, share) {
    return `rgba(${channels(hex)},${share})`;
  }

  // Plotly reads tags in texts; names of runs and classes are meant as they are written
  function plain(text) {
    return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  }

  function channels(hex) {
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }

  // Relative luminance of sRGB channels 0..255, as WCAG defines it.
  function luminance(rgb) {
    const [red, green, blue] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  // Of the page's text and background, the colour that is read better on a mixture of two others.
  function readableOn(from, to, share) {
    const under = luminance(channels(from).map((c, i) => c + share * (channels(to)[i] - c)));
    const contrast = (name) => {
      const [low, high] = [luminance(channels(colour(name))), under].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    };
    return contrast('text') >= contrast('back') ? colour('text') : colour('back');
  }

  function axis(title, more) {
    return {
      title: {text: plain(title), standoff: 8}, automargin: true, gridcolor: colour('grid'), zerolinecolor: colour('grid'),
      linecolor: colour('line'), tickfont: {size: 11},
      fixedrange: matchMedia('(pointer: coarse)').matches,  // a finger on a chart scrolls the page
      ...more,
    };
  }

  function layoutOf(xAxis, yAxis, more) {
    return {
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', margin: {l: 48, r: 12, t: 8, b: 40},
      font: {color: colour('text'), size: 12, family: 'system-ui, sans-serif'}, showlegend: false, xaxis: xAxis,
      yaxis: yAxis, hoverlabel: {bgcolor: colour('panel'), bordercolor: colour('line'), font: {color: colour('text')}},
      ...more,
    };
  }

  function linesOf(chart) {
    const {data, hidden} = chart;
    const traces = [];
    for (const line of data.lines) {
      const strong = line.colour === '#000000' ? colour('text') : line.colour;
      const common = {x: line.x, name: plain(line.label), visible: !hidden.has(line.label)};
      const few = line.x.length < 15;
      if (line.smooth) {
        traces.push({...common, y: line.y, mode: 'lines', line: {color: faded(strong, 0.35), width: 1}, hoverinfo: 'skip'});
      }
      traces.push({
        ...common, y: line.smooth ?? line.y, mode: few ? 'lines+markers' : 'lines', marker: {size: 6, color: strong},
        line: {color: strong, width: 2, dash: DASHES[line.dash]}, customdata: line.y,
        hovertemplate: (line.smooth ? '%{customdata:.4~g} (mean %{y:.4~g})' : '%{y:.4~g}'),
      });
    }
    const steps = data.lines.flatMap((line) => line.x);
    const isCounted = steps.every(Number.isInteger);  // epochs, iterations; a depth is not
    const rangemode = data.from_zero ? 'tozero' : 'normal';
    const ticks = isCounted && Math.max(...steps) - Math.min(...steps) <= 10 ? {dtick: 1} : {};
    const xAxis = axis(data.x_label, {rangemode, ...ticks});
    const yLabel = data.y_label === data.title ? '' : data.y_label;  // the title is right above it
    const layout = layoutOf(xAxis, axis(yLabel, {rangemode, type: chart.log ? 'log' : 'linear', tickformat: '~g'}), {
      hovermode: 'x unified',
    });
    if (data.reference) {
      const y = chart.log ? Math.log10(data.reference.value) : data.reference.value;
      layout.shapes = [{
        type: 'line', xref: 'paper', x0: 0, x1: 1, y0: data.reference.value, y1: data.reference.value,
        line: {color: colour('soft'), width: 1, dash: 'dot'},
      }];
      layout.annotations = [{
        xref: 'paper', x: 1, xanchor: 'right', y, yanchor: 'bottom', showarrow: false, text: plain(data.reference.text),
        font: {size: 11, color: colour('soft')},
      }];
    }
    return {traces, layout};
  }

  function cellsOf(chart) {
    const {data} = chart;
    const few = data.row_names.length * data.column_names.length <= 200;
    const shares = data.shares;
    const trace = {
      type: 'heatmap', z: shares, zmin: 0, zmax: 1, xgap: few ? 1 : 0, ygap: few ? 1 : 0, showscale: false,
      x: data.column_names.map((_, i) => i), y: data.row_names.map((_, i) => i),
      colorscale: [[0, colour('panel')], [1, colour('heat')]], hoverongaps: false,
      text: data.values.map((row, i) => row.map((value, j) =>
        `${plain(data.y_label)}: ${plain(data.row_names[i])}<br>${plain(data.x_label)}: ${plain(data.column_names[j])}<br>` +
        `${(100 * (shares[i][j] ?? 0)).toFixed(1)}% (${value.toLocaleString('en')})`)),
      hoverinfo: 'text',
    };
    const ticks = (names) => {
      const step = Math.ceil(names.length / 25);
      const shown = names.map((_, i) => i).filter((i) => i % step === 0);
      return {tickvals: shown, ticktext: shown.map((i) => plain(names[i])), showgrid: false, zeroline: false};
    };
    const layout = layoutOf(
      axis(data.x_label, {...ticks(data.column_names), tickangle: -60}),
      axis(data.y_label, {...ticks(data.row_names), autorange: 'reversed'}));
    if (few) {
      layout.annotations = shares.flatMap((row, i) => row.map((share, j) => ({
        x: j, y: i, showarrow: false, text: share === null ? '' : `${Math.round(100 * share)}`,
        font: {size: 11, color: readableOn(colour('panel'), colour('heat'), share ?? 0)},
      })));
    }
    return {traces: [trace], layout};
  }

  async function draw(figure) {
    const chart = charts.get(figure);
    const {traces, layout} = chart.data.kind === 'lines' ? linesOf(chart) : cellsOf(chart);
    const library = await plotly();
    await library.react(chart.box, traces, layout, {
      responsive: true, displayModeBar: false,
    });
    figure.dataset.drawn = 'true';
  }

  function showStillPicture(figure) {
    const still = new DOMParser().parseFromString(figure.querySelector('noscript').textContent, 'text/html');
    charts.get(figure).box.replaceWith(...still.body.childNodes);
    charts.delete(figure);
  }

  async function drawOrShow(figure) {
    try {
      await draw(figure);
    } catch (error) {
      console.warn('The chart is shown as a picture:', error);
      showStillPicture(figure);
    }
  }

  function addLogButton(figure) {
    const chart = charts.get(figure);
    const values = chart.data.lines.flatMap((line) => line.y).filter((value) => value !== null);
    const lowest = Math.min(...values);
    if (!(lowest > 0 && Math.max(...values) > 3 * lowest)) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'log';
    button.setAttribute('aria-pressed', 'false');
    button.setAttribute('aria-label', `logarithmic scale: ${chart.data.title}`);
    button.addEventListener('click', () => {
      chart.log = !chart.log;
      button.setAttribute('aria-pressed', chart.log);
      drawOrShow(figure);
    });
    figure.querySelector('figcaption').append(button);
  }

  // A legend stands for all charts of its group: its entries show and hide their runs in each.
  function wireLegend(group) {
    for (const entry of group.querySelectorAll('.legend li > span')) {
      const button = document.createElement('button');
      button.type = 'button';
      button.setAttribute('aria-pressed', 'true');
      button.append(...entry.childNodes);
      entry.replaceWith(button);
      button.addEventListener('click', () => {
        const shown = button.getAttribute('aria-pressed') === 'false';
        button.setAttribute('aria-pressed', shown);
        for (const figure of group.querySelectorAll('.chart')) {
          const chart = charts.get(figure);
          if (!chart) continue;
          chart.hidden[shown ? 'delete' : 'add'](button.textContent);
          if (figure.dataset.drawn) drawOrShow(figure);
        }
      });
    }
  }

  const near = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      drawOrShow(target);
    }
  }, {rootMargin: '600px'});

  for (const figure of document.querySelectorAll('.chart[data-kind]')) {
    const data = JSON.parse(figure.querySelector('script').textContent);
    charts.set(figure, {data, box: figure.querySelector('.plot'), hidden: new Set(), log: false});
    if (data.kind === 'lines') addLogButton(figure);
    near.observe(figure);
  }
  document.querySelectorAll('.group').forEach(wireLegend);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    for (const figure of charts.keys()) if (figure.dataset.drawn) drawOrShow(figure);
  });
})();
