"""Lua that Envoy runs for what no other filter of it can do. Pure.

Of every answer: one that is none becomes 502. Before tokens are read: one whose header asks for an extension is told of (RFC 7515,
4.1.11: it must be refused; Envoy's filter looks at no such field), and a prefix in an odd spelling is put right. After: the cookie
that a token came in is taken out of its field, and claims become headers in the form of the other engine.

Scripts are made of nothing but the config, and keep nothing between requests.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from backstay.config.model import Jwt, JwtProvider, TokenPlace
from backstay.sidecar.engines.envoy.api import Json, message

EXTENSION: Final = "backstay.token-header"
"""Key of the metadata that tells of a token which asks for an extension."""
_KIND: Final = "envoy.extensions.filters.http.lua.v3.Lua"

REFUSED_ANSWER: Final = "filter_removed_required_response_headers"
"""How Envoy's details begin about an answer whose status a filter took away: it says 502 and lets go of who answered."""
_ANSWERS: Final = r"""
local KEPT = {close = true, ["keep-alive"] = true, upgrade = true}

local function is_none(headers)
  local status = headers:get(":status") or ""
  if not status:find("^[1-9]%d%d$") then return true end
  return status == "101" and (headers:get("upgrade") or ""):lower() ~= ASKED
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if is_none(headers) then headers:remove(":status") return end
  local named = headers:get("connection")
  if not named then return end
  for name in named:gmatch("[^,%s]+") do
    if not KEPT[name:lower()] and name:sub(1, 1) ~= ":" then headers:remove(name) end
  end
end
"""

_READING: Final = r"""
local DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
local VALUES = {}
for at = 1, 64 do VALUES[DIGITS:byte(at)] = at - 1 end

local function decoded(text)
  local out, bits, held = {}, 0, 0
  for at = 1, #text do
    held, bits = held * 64 + VALUES[text:byte(at)], bits + 6
    if bits >= 8 then
      bits = bits - 8
      local byte = math.floor(held / 2 ^ bits)
      out[#out + 1], held = string.char(byte), held - byte * 2 ^ bits
    end
  end
  return table.concat(out)
end

-- Names may be spelt with escapes. What is taken for a name too often is refused too often, never too seldom.
local function asks(header)
  local text = decoded(header):gsub("\\u00(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end)
  return text:find('"crit"%s*:') or text:find('"b64"%s*:')
end

-- Envoy finds a token anywhere in a value.
local function has_asking(text)
  for header in text:gmatch("([%w_%-]+)%.[%w_%-]") do
    if asks(header) then return true end
  end
  return false
end

local function unescaped(text)
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

local function in_fields(headers, name)
  for at = 0, headers:getNumValues(name) - 1 do
    if has_asking(headers:getAtIndex(name, at)) then return true end
  end
  return false
end

local function in_query(headers, name)
  local query = (headers:get(":path") or ""):match("%?(.*)") or ""
  for pair in query:gmatch("[^&]+") do
    local key, value = pair:match("^([^=]*)=(.*)")
    if key and unescaped(key) == name and has_asking(unescaped(value)) then return true end
  end
  return false
end

local function in_cookies(headers, name)
  for at = 0, headers:getNumValues("cookie") - 1 do
    for pair in headers:getAtIndex("cookie", at):gmatch("[^;]+") do
      local key, value = pair:match("^%s*([^=]-)%s*=(.*)")
      if key == name and has_asking(value) then return true end
    end
  end
  return false
end

local function put_right(headers, name, prefix)
  local value = headers:getNumValues(name) == 1 and headers:get(name) or ""
  if #value > #prefix and value:sub(1, #prefix) ~= prefix and value:sub(1, #prefix):lower() == prefix:lower() then
    headers:replace(name, prefix .. value:sub(#prefix + 1))
  end
end
"""

_WRITING: Final = r"""
local SPACED = {scope = true, scp = true, permission = true}

-- As Python writes them: whole numbers without a point.
local function as_text(value)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "boolean" then return tostring(value) end
  if kind == "number" then
    return value == math.floor(value) and math.abs(value) < 2 ^ 53 and string.format("%d", value) or tostring(value)
  end
  return ""
end

local function found_in(claims, name)
  if claims[name] ~= nil then return claims[name] end
  local found = claims
  for key in name:gmatch("[^.]+") do
    if type(found) ~= "table" then return nil end
    found = found[key]
  end
  return found
end

local function joined(claims, name)
  local value, texts = found_in(claims, name), {}
  if type(value) == "string" and SPACED[name:match("[^.]*$")] then
    for part in value:gmatch("%S+") do texts[#texts + 1] = part end
  elseif type(value) == "table" then
    for _, each in ipairs(value) do
      local text = as_text(each)
      if text ~= "" then texts[#texts + 1] = text end
    end
  else
    texts[1] = as_text(value)
  end
  return table.concat(texts, ",")
end

local function write(headers, field, claims, name)
  local value = joined(claims, name)
  if value ~= "" and not value:find("[%z\1-\31\127]") then headers:replace(field, value) end
end

local function without(line, name)
  local kept = {}
  for pair in line:gmatch("[^;]+") do
    if pair:match("^%s*([^=]-)%s*=") ~= name then kept[#kept + 1] = pair end
  end
  return (table.concat(kept, ";"):gsub("^%s+", ""))
end

local function take_out(headers, name)
  local lines, is_there = {}, false
  for at = 0, headers:getNumValues("cookie") - 1 do
    local line = headers:getAtIndex("cookie", at)
    local kept = without(line, name)
    is_there = is_there or kept ~= line
    if kept ~= "" then lines[#lines + 1] = kept end
  end
  if not is_there then return end
  headers:remove("cookie")
  for _, line in ipairs(lines) do headers:add("cookie", line) end
end
"""


def answers(upgrade: str = "") -> Json:
    """A status without three digits (RFC 9110, 15), and a switch to another protocol than `upgrade`, which was asked for
    (RFC 9110, 7.8), are no answer. What `Connection` names ends here (RFC 9110, 7.6.1)."""
    return _filter("backstay.answers", f"local ASKED = {quoted(upgrade or '-')}\n{_ANSWERS}")


def before(jwt: Jwt) -> Json:
    """Reads what stands at the places of tokens, as they came."""
    places = list(dict.fromkeys(place for provider in jwt.providers for place in provider.places))
    looks = " or ".join(map(_look, places)) or "false"
    lines = [f"put_right(headers, {quoted(each.name)}, {quoted(each.prefix)})" for each in places if each.prefix]
    lines.append(f"if {looks} then")
    lines.append(f'  handle:streamInfo():dynamicMetadata():set("{EXTENSION}", "asked", true)')
    lines.append("end")
    return _filter("backstay.token-header", _on_request(_READING, ["local headers = handle:headers()", *lines]))


def _look(place: TokenPlace) -> str:
    where = {"header": "in_fields", "query": "in_query", "cookie": "in_cookies"}[place.kind]
    return f"{where}(headers, {quoted(place.name)})"


def after(jwt: Jwt, metadata: str, key: str) -> Json | None:
    """Writes what applications see of a token that was verified; `metadata`, `key`: where its claims lie."""
    wanted = {provider.issuer: list(_written(provider)) for provider in jwt.providers}
    if not any(wanted.values()):
        return None
    lines = [
        f"local verified = handle:streamInfo():dynamicMetadata():get({quoted(metadata)})",
        f"local claims = verified and verified[{quoted(key)}]",
        "if not claims then return end",
        "local headers = handle:headers()",
        *_by_issuer(wanted),
    ]
    return _filter("backstay.token-fields", _on_request(_WRITING, lines))


def _written(provider: JwtProvider) -> Iterable[str]:
    if not provider.forward:
        names = [place.name for place in provider.places if place.kind == "cookie"]
        yield from (f"take_out(headers, {quoted(name)})" for name in names)
    for header, claim in provider.claim_headers:
        yield f"write(headers, {quoted(header)}, claims, {quoted(claim)})"


def _by_issuer(wanted: Mapping[str, list[str]]) -> Iterable[str]:
    for issuer, lines in wanted.items():
        if lines:
            yield f"if claims.iss == {quoted(issuer)} then"
            yield from (f"  {line}" for line in lines)
            yield "end"


def _on_request(library: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{library}\nfunction envoy_on_request(handle)\n{body}\nend\n"


def _filter(name: str, source: str) -> Json:
    config = message(_KIND, default_source_code={"inline_string": source}, clear_route_cache=False)
    return {"name": name, "typed_config": config}


def quoted(text: str) -> str:
    """A literal of Lua: whatever is no plain letter or digit is written as its number."""
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./: ")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03d}" for byte in text.encode()) + '"'
