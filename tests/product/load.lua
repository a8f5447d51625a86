-- For wrk: each request adds a group to Django's admin, with a name of its own, or reads the list of them. What was
-- asked, and what was answered, goes to a file of each thread, which has one connection.

local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(arguments)
   prefix, quota = arguments[1], tonumber(arguments[2])
   cookies, token = arguments[3], arguments[4]
   file = io.open(arguments[5] .. "." .. number, "w")
   asked, answered = 0, 0
end

function request()
   local headers = { Cookie = cookies }
   -- wrk asks the first thread once before it begins, and sends nothing of that
   if number == 0 and not checked then
      checked = true
      return wrk.format("GET", "/admin/login/", headers)
   end
   asked = asked + 1
   if asked % 4 == 0 then
      current = "read-" .. asked
      note("asked")
      return wrk.format("GET", "/admin/auth/group/?q=" .. prefix, headers)
   end
   current = prefix .. "-" .. number .. "-" .. asked
   note("asked")
   headers["X-CSRFToken"] = token
   headers["Content-Type"] = "application/x-www-form-urlencoded"
   return wrk.format("POST", "/admin/auth/group/add/", headers, "name=" .. current .. "&_save=Save")
end

function response(status)
   note(status)
   answered = answered + 1
   if answered == quota then
      note("done")
      wrk.thread:stop()
   end
end

function note(what)
   file:write(current, " ", what, "\n")
   file:flush()
end
