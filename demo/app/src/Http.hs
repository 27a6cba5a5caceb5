-- | As much of HTTP/1.0 as a probe and a curl want.
module Http (Request (..), Response (..), serve) where

import Control.Concurrent (forkIO)
import Control.Exception (finally)
import Control.Monad (forever, void)

import Socket (Socket, accept, close, listen, receive, send)

data Request = Request {method :: String, path :: String}

data Response = Response {status :: Int, body :: String}

-- | Answers each connection with what the function says. Does not return.
serve :: Int -> (Request -> Response) -> IO ()
serve port answer = do
  listener <- listen port
  forever $ do
    connection <- accept listener
    forkIO (talk connection answer `finally` close connection)

talk :: Socket -> (Request -> Response) -> IO ()
talk connection answer = do
  text <- receive connection
  case words (takeWhile (/= '\r') text) of
    (verb : target : _) -> reply (answer (Request verb target))
    _ -> reply (Response 400 "not a request\n")
  where
    reply response = void (send connection (render response))

render :: Response -> String
render (Response code text) =
  unlines' ["HTTP/1.0 " ++ show code ++ " " ++ phrase, "Content-Type: text/plain", "Content-Length: " ++ show (length text), ""] ++ text
  where
    phrase = if code == 200 then "OK" else "Not OK"
    unlines' = concatMap (++ "\r\n")
