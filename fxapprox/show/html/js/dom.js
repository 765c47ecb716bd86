// Elements of HTML and SVG from a tag, attributes and children; text is always text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function html(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function body(section) {
  return document.querySelector(`#${section} .body`);
}

// A dotted path, which may break behind its dots.
function pathText(path) {
  return path.split(/(?<=[._])/).flatMap((part, i) => (i ? [html("wbr"), part] : [part]));
}
