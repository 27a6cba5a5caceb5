-- | A web server that greets.
module Main (main) where

import System.Environment (lookupEnv)
import System.Exit (ExitCode (ExitSuccess))
import System.IO (BufferMode (LineBuffering), hSetBuffering, stdout)
import System.Posix.Process (exitImmediately)
import System.Posix.Signals (Handler (Catch), installHandler, sigTERM)

import Greeting (greeting)
import Http (Request (..), Response (..), serve)

main :: IO ()
main = do
  hSetBuffering stdout LineBuffering
  -- Process 1 of a container gets no default action for SIGTERM.
  _ <- installHandler sigTERM (Catch (exitImmediately ExitSuccess)) Nothing
  port <- maybe 8080 read <$> lookupEnv "PORT"
  putStrLn ("greeter listens on port " ++ show port ++ ": " ++ greeting)
  serve port answer

answer :: Request -> Response
answer request = case path request of
  "/healthz" -> Response 200 "ok\n"
  "/" -> Response 200 (greeting ++ "\n")
  _ -> Response 404 "nothing here\n"
